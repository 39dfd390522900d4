"""The page: everything stored is told, nothing else is needed, and a browser shows it well."""

import base64
import json
import shutil
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from houses import houses
from omegaconf import OmegaConf
from running import run

from perceptrail import charts, report, tables
from perceptrail.course import COURSE
from perceptrail.data.idx import NAMES

VERDICTS = ("holds", "holds with a limit", "does not hold here")


@cache
def drawn(title):
    """The bytes of a chart."""
    file = BytesIO()
    charts.dots({"": {"relu": [0.9, 0.8], "tanh": [0.7, 0.9]}}, title=title, x="x").savefig(file)
    return file.getvalue()


def store(results, name, **values):
    """What a study leaves: a claim for each verdict, two figures, a few numbers."""
    folder = results / name
    (folder / "figures").mkdir(parents=True)
    for figure in ("first", "second_one"):
        (folder / f"figures/{figure}.png").write_bytes(drawn(figure))
    study = {
        "name": name,
        "question": f"Does {name} work?",
        "text": f"About `{name}`.\n\nIn two paragraphs.",
        "code": "experiments/xor.py",
        "config": {"size": "full"},
        "command": f"python experiments/{name}.py",
        "claims": [
            {"claim": f"{name} {i}", "verdict": said, "evidence": f"{i} of {name}"}
            for i, said in enumerate(VERDICTS)
        ],
        "figures": [
            {"file": f"figures/{figure}.png", "caption": f"The {figure} of {name}"}
            for figure in ("first", "second_one")
        ],
    }
    (folder / "study.json").write_text(json.dumps(study | values))
    metrics = {"accuracy/relu": 0.875, "accuracy/relu sd": 0.012, "accuracy/tanh": None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "measurements.csv").write_text("part\n")


def write(folder, **values):
    """Make the page of a folder with `results` and whatever `values` name."""
    plain = {"benchmarks": folder / "none", "datasets": folder / "none", "tracking": {"uri": None}}
    values = {"page": folder / "report.html", "results": folder / "results"} | plain | values
    cfg = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
    return report.write(OmegaConf.create(cfg))


class Page(HTMLParser):
    """Its text in one line, and its elements."""

    def __init__(self, path):
        super().__init__()
        self.elements, self._parts, self._skip = [], [], False
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self._parts).split())

    def handle_starttag(self, tag, attrs):
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        self._skip = tag == "style"

    def handle_endtag(self, tag):
        """Leave a style sheet."""
        self._skip = False

    def handle_data(self, data):
        """Note what is to be read."""
        if not self._skip:
            self._parts.append(data)

    def all(self, tag, attribute):
        """An attribute of every element of a kind."""
        return [attrs[attribute] for name, attrs in self.elements if name == tag]


@pytest.fixture
def results(tmp_path):
    store(tmp_path / "results", "xor")
    store(tmp_path / "results", "perceptron")
    return tmp_path / "results"


def test_everything_stored_is_told(tmp_path, results):
    page = Page(write(tmp_path))
    for path in results.glob("*/study.json"):
        study = json.loads(path.read_text())
        said = [study["question"], "In two paragraphs.", study["command"], study["code"]]
        said += [text for claim in study["claims"] for text in claim.values()]
        said += [figure["caption"] for figure in study["figures"]]
        said += [f"results/{study['name']}/measurements.csv"]
        assert [text for text in said if text not in page.text] == []
    assert "relu 0.875 ± 0.012 tanh –" in page.text
    assert "`" not in page.text


def test_pictures_are_inside_the_page_and_nothing_is_outside(tmp_path, results):
    page = Page(write(tmp_path))
    inside = {base64.b64decode(src.partition(",")[2]) for src in page.all("img", "src")}
    assert inside == {path.read_bytes() for path in results.glob("*/figures/*.png")}
    assert all(page.all("img", "alt"))
    assert not {"script", "iframe", "object"} & {name for name, _ in page.elements}
    assert "@import" not in page.text
    assert not [link for link in page.all("a", "href") if "://" in link]


def test_what_git_does_not_carry_is_left_out_and_said(tmp_path, results, capsys):
    write(tmp_path)
    assert "not here" not in capsys.readouterr().out
    (results / "xor" / "figures" / "first.png").unlink()
    (results / "xor" / "measurements.csv").unlink()
    page = Page(write(tmp_path))
    assert len(page.all("img", "src")) == 3 and "The first of xor" not in page.text
    assert "Pictures that are not here: 1." in page.text
    assert "; pictures not here: 1 (make repro draws them)" in capsys.readouterr().out


def test_sections_come_in_the_order_of_the_course_and_others_last(tmp_path, results):
    store(results, "another_idea")
    page = Page(write(tmp_path))
    order = [section.study for section in COURSE]
    told = [i for i in page.all("section", "id") if (results / i).is_dir()]
    assert told == ["perceptron", "xor", "another_idea"]
    assert "Another idea" in page.text
    missing = ", ".join(name for name in order if name not in told)
    assert f"not on this page: {missing}." in page.text


def test_the_default_run_is_told_with_its_test_accuracy(tmp_path, results):
    folder = results / "evaluate"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "learning_curves.png").write_bytes(drawn("curves"))
    metrics = {"test/acc": 0.9876, "best/val/acc": 0.98, "epoch": 20, "time/fit_s": 12.34}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write(tmp_path))
    assert "test accuracy 98.76% validation accuracy 98.00% epochs 20 training 12.3 s" in page.text
    assert "Loss and accuracy, epoch by epoch." in page.text


def test_the_tally_counts_verdicts(tmp_path, results):
    store(results, "tuner", claims=[{"claim": "a", "verdict": "holds", "evidence": "b"}])
    assert "✓" in write(tmp_path).read_text()
    assert "holds 3 holds with a limit 2 does not hold here 2" in Page(write(tmp_path)).text


def test_a_first_look_is_called_one(tmp_path, results):
    assert "quick size" not in Page(write(tmp_path)).text
    store(results, "tuner", config={"size": "quick"})
    assert Page(write(tmp_path)).text.count("quick size") == 1


def test_without_results_it_says_so(tmp_path):
    assert "No study has been run yet" in Page(write(tmp_path)).text


def test_what_looks_like_markup_stays_text(tmp_path):
    store(tmp_path / "results", "xor", question="Is 1 < 2 & <b>bold</b>?", text="`<i>` & <u>")
    page = Page(write(tmp_path))
    assert "Is 1 < 2 & <b>bold</b>?" in page.text
    assert "<i> & <u>" in page.text


@pytest.mark.parametrize(
    ("value", "sd", "said"),
    [
        (0.98765, 0.00321, "0.9877 ± 0.0032"),
        (12345.6, 789.0, "12,346 ± 789"),
        (1.0, 0.0, "1 ± 0"),
        (50890.0, None, "50,890"),
        (3.2e-11, None, "3.2e-11"),
        (3.21e-11, 4.5e-12, "3.2e-11 ± 4e-12"),
        (-0.5, None, "-0.5"),
        (None, None, "–"),
    ],
)
def test_a_number_has_the_digits_its_spread_leaves(value, sd, said):
    assert tables.number(value, sd) == said


def test_measures_of_the_same_variants_share_a_table():
    metrics = {"a/x": 1, "a/y": 2, "b/x": 3, "b/y": 4, "c/z": 5, "d": 6}
    alone, shared = tables.of_metrics(metrics)
    assert alone.rows == [["c/z", "5"], ["d", "6"]]
    assert shared == tables.Table(["", "a", "b"], [["x", "1", "3"], ["y", "2", "4"]])


def test_a_benchmark_is_shown_as_it_was_stored(tmp_path, results):
    table = [["contender", "speed"], ["ours", "102 (100 to 104)"], ["theirs", "10 (10 to 10)"]]
    stored = {"rounds": 2, "machine": "two cores", "table": table, "rows": []}
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "speed.json").write_text(json.dumps(stored))
    page = Page(write(tmp_path, benchmarks=tmp_path / "bench"))
    assert "Speed, 2 rounds, two cores" in page.text
    assert "ours 102 (100 to 104) theirs 10 (10 to 10)" in page.text


def test_digests_tell_the_published_bytes_from_others(tmp_path, results, mnist_dir):
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    shutil.copy(mnist_dir / NAMES[3], folder)
    page = Page(write(tmp_path, datasets=tmp_path / "data"))
    assert f"mnist/{NAMES[3]} 10,008 27ae3e4e09519cfbb04c329615203637 as published" in page.text
    content = bytearray((folder / NAMES[3]).read_bytes())
    content[5000] ^= 1
    (folder / NAMES[3]).write_bytes(content)
    page = Page(write(tmp_path, datasets=tmp_path / "data"))
    assert NAMES[3] in page.text
    assert "as published" not in page.text


@pytest.mark.slow
def test_the_leaderboard_is_ordered_by_validation_and_leaves_the_store_alone(tmp_path, results):
    from mlflow.entities import Dataset, DatasetInput
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    for name, accuracy, ended in (("b", 0.9, True), ("a", 0.95, True), ("c", 0.99, False)):
        run_id = client.create_run("0", run_name=f"run-{name}").info.run_id
        client.log_inputs(run_id, [DatasetInput(Dataset("mnist", "0", "local", "{}"))])
        params = {"optimizer._target_": "torch.optim.AdamW"}
        params |= {"model.hidden": "[64]", "model.activation": "relu", "optimizer.lr": "0.1"}
        for key, value in params.items():
            client.log_param(run_id, key, value)
        client.log_metric(run_id, "best/val/acc", accuracy)
        if ended:
            client.set_terminated(run_id)
    stored = (tmp_path / "mlflow.db").read_bytes()
    page = Page(write(tmp_path, tracking={"uri": uri}))
    best, second = (page.text.index(f"run-{n} [64] relu AdamW, 0.1 9") for n in "ab")
    assert best < second
    assert "95.00%" in page.text[best:second]
    assert "run-c" not in page.text  # it still goes on
    assert (tmp_path / "mlflow.db").read_bytes() == stored


LEARNED = {
    "houses, classification of cheap": ("data.target=cheap", "model.hidden=[8]"),
    "houses, regression of price, rent": ("task=regression", "data.target=[price,rent]"),
    "houses, regression of price": ("task=regression", "data.target=price", "optimizer.lr=1e-9"),
    "houses, multilabel of cheap, large": ("task=multilabel", "data.target=[cheap,large]"),
    "digits, classification": ("data=digits", "model=cnn"),
    "digits, own": (
        *("data=digits", "task=own", "task._target_=users_modules.Slashed"),
        *("monitor.metric=val/acc", "monitor.mode=max"),
    ),
}


@pytest.mark.slow
def test_the_leaderboard_has_a_table_for_each_problem_by_its_own_measure(tmp_path, results):
    houses(tmp_path)
    table = ("data=table", "data.path=houses.csv", "data.features=[size,rooms]")
    folders = {}
    for problem, chosen in LEARNED.items():
        known_by = "r2" if "regression" in problem else "acc"
        folders[problem] = tmp_path / f"outputs/{known_by}/{len(folders)}"
        given = chosen if "data=digits" in chosen else (*table, *chosen)
        options = ("trainer.max_epochs=2", "figures=false", f"hydra.run.dir={folders[problem]}")
        run("train.py", *given, *options, cwd=tmp_path)
    for known_by in ("r2", "acc"):
        run("evaluate.py", f"run=outputs/{known_by}", cwd=tmp_path)
    shown = {k: json.loads((f / "metrics.json").read_text()) for k, f in folders.items()}
    text = Page(write(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})).text
    for problem, metrics in shown.items():
        board = text[text.index(f" {problem} run network") :]
        if "regression" in problem:
            told = f"{metrics['best/val/r2']:.4f} {metrics['test/r2']:.4f}"
            assert " validation R² test" in board
        else:
            told = f"{metrics['best/val/acc']:.2%} {metrics['test/acc']:.2%}"
            assert " validation accuracy test" in board
        assert told in board
    assert shown["houses, regression of price"]["best/val/r2"] < 0
    assert text.count("run network optimizer") == len(LEARNED)
    assert "LeNet AdamW, " in text
    assert "Slashed – " in text
    assert " [8] relu AdamW, " in text


def test_no_store_means_no_leaderboard_and_none_is_made(tmp_path, results):
    page = Page(write(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"}))
    assert "leaderboard" not in page.all("section", "id")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_whole(tmp_path, results, browser, width):
    long = "python experiments/xor.py " + " ".join(f"key{i}=value" for i in range(40))
    numbers = {f"a rather long measure {i}/variant {k}": 0.5 for i in range(9) for k in range(9)}
    store(results, "tuner", command=long)
    (results / "tuner" / "metrics.json").write_text(json.dumps(numbers))
    page = write(tmp_path)
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(page.as_uri())
    pictures = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(pictures) == 6
    assert all(pictures)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    dangling = browser.execute_script(
        "return [...document.links].map(a => a.getAttribute('href')).filter("
        "h => h.startsWith('#') && !document.getElementById(h.slice(1)))"
    )
    assert dangling == []
    files = [link for link in Page(page).all("a", "href") if not link.startswith("#")]
    assert files
    assert [link for link in files if not (tmp_path / link).resolve().is_file()] == []
    browser.execute_script("document.querySelector('a[href=\"#tuner\"]').click()")
    assert browser.current_url.endswith("#tuner")
    assert browser.get_log("browser") == []
