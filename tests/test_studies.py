"""Studies as commands, checked against the files and the store; and the pipeline that runs them."""

import ast
import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import grimp
import pytest
import yaml
from mlflow.tracking import MlflowClient
from PIL import Image
from running import ROOT, Command, run

STUDIES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
TINY = ("widths=[0,4]", "seeds=2", "bits=[2]", "parity_widths=[4]", "parity_seeds=1", "epochs=3")
# They check, record or report: no result can change by them.
WITHOUT_EFFECT = {
    *("command", "config", "errors", "invocation", "passwords", "processes", "provenance"),
    *("recorder", "runs", "tracking"),
    # For other runs than those of a study.
    *("gallery", "interactive", "search", "search.pruning", "search.running", "search.storage"),
}


def measurements(folder):
    with (folder / "measurements.csv").open() as file:
        return list(csv.DictReader(file))


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A folder in which the XOR study has been run, at a tiny size."""
    folder = tmp_path_factory.mktemp("studied")
    (folder / "experiments").mkdir()  # where the command's output goes
    run("experiments/xor.py", *TINY, f"tracking.uri=sqlite:///{folder}/mlflow.db", cwd=folder)
    return folder


@pytest.mark.slow
def test_a_study_leaves_its_files_and_nothing_else(studied):
    folder = studied / "results" / "xor"
    page = read(folder / "study.json")
    pictures = {folder / figure["file"] for figure in page["figures"]}
    expected = {folder / name for name in ("study.json", "metrics.json", "measurements.csv")}
    assert {path for path in folder.rglob("*") if path.is_file()} == expected | pictures
    assert [path.name for path in folder.parent.iterdir()] == ["xor"]
    for picture in pictures:
        with Image.open(picture) as opened:
            assert min(opened.size) > 100
    assert page["question"] == "Why does XOR need a hidden layer?"
    assert page["config"]["widths"] == [0, 4]
    assert page["command"].startswith("python experiments/xor.py widths=[0,4]")
    assert (ROOT / page["code"]).is_file()


@pytest.mark.slow
def test_metrics_are_the_mean_and_spread_of_the_measurements(studied):
    folder = studied / "results" / "xor"
    rows = measurements(folder)
    assert len(rows) == 2 * 2 + 1
    values = [float(r["best/val/acc"]) for r in rows if (r["part"], r["variant"]) == ("width", "4")]
    metrics = read(folder / "metrics.json")
    assert metrics["accuracy/4 units"] == pytest.approx(mean(values), rel=1e-12)
    assert metrics["accuracy/4 units sd"] == pytest.approx(stdev(values), rel=1e-12)
    assert not [name for name in rows[0] if name.startswith(("time/", "train/samples_per_second"))]


@pytest.mark.slow
def test_a_second_run_measures_the_same(studied):
    run("experiments/xor.py", *TINY, "tracking.uri=null", "results=again", cwd=studied)
    first, second = (studied / place / "xor" for place in ("results", "again"))
    for name in ("measurements.csv", "metrics.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.slow
def test_the_store_holds_the_study(studied):
    client = MlflowClient(f"sqlite:///{studied}/mlflow.db")
    experiment = client.get_experiment_by_name("studies")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "study-xor"
    assert found.data.params["widths"] == "[0, 4]"
    folder = studied / "results" / "xor"
    assert found.data.metrics == pytest.approx(read(folder / "metrics.json"))
    kept = {Path(a.path).name for a in client.list_artifacts(found.info.run_id)}
    assert {path.name for path in folder.rglob("*") if path.suffix} <= kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("seedz=3", "seedz: must be one of size, seeds, launcher"),
        ("size=huge", "size=huge: must be one of full, quick"),
        ("seeds=many", "seeds=many: must be a whole number above 0"),
        ("seeds=0", "seeds=0: must be a whole number above 0"),
        ("widths=3", "widths=3: must be a list"),
        ("seeds=[1", "seeds=[1: must be key=value"),
    ],
)
def test_a_mistyped_key_is_said_and_nothing_is_run(tmp_path, argument, said):
    (tmp_path / "experiments").mkdir()
    ended = Command("experiments/xor.py", argument, cwd=tmp_path).wait()
    assert ended.code == 1
    assert ended.output.startswith(said)
    assert len(ended.output.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("argument", ["--help", "sieze=quick"])
@pytest.mark.parametrize("study", STUDIES)
def test_light_answers_import_nothing_heavy(study, argument):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{study}.py', '{argument}']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'experiments' / study) + '.py'!r}, run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'mlflow', 'pytorch_lightning', 'sklearn', 'matplotlib', 'optuna'}\n"
        "    print(sorted({*heavy, 'scipy'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1] == "[]"
    if argument == "--help":
        assert ended.returncode == 0
        assert "\nseeds: " in ended.stdout
    else:
        assert ended.returncode == 1
        assert ended.stderr.startswith("sieze: must be one of size, seeds")


# A study without trainings, which ends as its line says.
ENDING = """
import os, signal
from pathlib import Path
from matplotlib.figure import Figure
from perceptrail.studies import ROOT, execute

rename = Path.rename

def no_second(path, target):
    if path.name == ".xor-new":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(path, target)

def main(study):
    study.note("part", value=study.cfg.seeds)
    study.figure("empty", Figure(), str(study.cfg.seeds))
    {line}

__file__, __doc__ = str(ROOT / "experiments" / "xor.py"), "Why?"
execute(main)
"""
ENDS = {
    "finished": "pass",
    "failed": "raise RuntimeError('no more')",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "killed between the renames": "Path.rename = no_second",
    "failed as it closed": "study._page['claims'] = {0j}",
}


def end(how, seeds, *, cwd, uri="null"):
    (cwd / "ending.py").write_text(ENDING.format(line=ENDS[how]))
    script = str(cwd / "ending.py")
    return Command(script, f"seeds={seeds}", f"tracking.uri={uri}", cwd=cwd).wait()


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in ENDS if how != "finished"])
def test_earlier_results_stay_until_new_ones_are_complete(tmp_path, how):
    folder = tmp_path / "results" / "xor"
    assert end("finished", 1, cwd=tmp_path).code == 0
    earlier = contents(folder)
    assert len(earlier) == 4
    ended = end(how, 2, cwd=tmp_path)
    assert ended.code == (-signal.SIGKILL if how.startswith("killed") else 1), ended.output
    if how == "killed between the renames":
        assert not folder.exists()
        assert end("failed", 3, cwd=tmp_path).code == 1  # and mends it
    assert contents(folder) == earlier
    assert end("finished", 4, cwd=tmp_path).code == 0
    assert read(folder / "study.json")["config"]["seeds"] == 4
    assert [path.name for path in folder.parent.iterdir()] == ["xor"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["failed", "failed as it closed"])
def test_the_store_says_that_a_study_failed(tmp_path, how):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    end(how, 1, cwd=tmp_path, uri=uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("studies")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FAILED"
    assert found.data.tags["mlflow.note.content"].startswith("FAILED: ")


DIVERGING = """
import json
from omegaconf import OmegaConf
from perceptrail.errors import UserError
from perceptrail.studies import ROOT, Study, of

def study():
    cfg = OmegaConf.create({"seeds": 1, "launcher": "basic", "processes": 2, "results": "results"})
    return Study("rates", cfg, page="Too fast?", code=ROOT / "experiments" / "xor.py")

common = ("experiment=xor", "trainer.max_epochs=2", "optimizer=sgd", "schedule=constant")
variants = {"good": ["optimizer.lr=0.1"], "bad": ["optimizer.lr=1e30"]}
allowed = study()
done = allowed.train("rate", *common, variants=variants, may_diverge=True)
for name, values in of(done, "best/val/acc").items():
    allowed.metric(name, values)
allowed.close()
print("ERRORS", json.dumps([run.error for run in done]))
try:
    study().train("rate", *common, variants=variants)
except UserError as error:
    print("RAISED", error)
"""


@pytest.mark.slow
def test_a_diverging_run_is_an_error_unless_it_is_expected(tmp_path):
    (tmp_path / "rates.py").write_text(DIVERGING)
    said = run(str(tmp_path / "rates.py"), cwd=tmp_path).output.splitlines()
    (errors,) = (json.loads(line[7:]) for line in said if line.startswith("ERRORS "))
    (raised,) = (line[7:] for line in said if line.startswith("RAISED "))
    good, bad = errors
    assert good == ""
    assert bad
    assert raised == f"rate, bad, seed 0: {bad}"


@pytest.fixture(scope="module")
def pipeline():
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_every_study_has_its_sizes_and_its_stage(pipeline):
    assert sorted(pipeline["study"]["foreach"]) == STUDIES
    assert set(STUDIES) <= {path.stem for path in (ROOT / "experiments" / "conf").glob("*.yaml")}


@pytest.fixture(scope="module")
def imports():
    """The imports within the package, without what has no effect on results."""
    graph = grimp.build_graph("perceptrail", cache_dir=None)
    for name in WITHOUT_EFFECT:
        graph.remove_module(f"perceptrail.{name}")
    graph.remove_module(
        "perceptrail.interactive"
    )  # which the package offers, and studies do not take
    return graph


@pytest.mark.parametrize("study", STUDIES)
def test_the_stage_of_a_study_depends_on_all_that_it_imports(study, pipeline, imports):
    stage = pipeline["study"]
    item = stage["foreach"][study]
    deps = [dep.replace("${key}", study) for dep in stage["do"]["deps"]]
    for key, value in item.items():
        deps = [dep.replace(f"${{item.{key}}}", value) for dep in deps]
    assert [dep for dep in deps if "$" in dep] == []
    assert [dep for dep in deps if not dep.startswith("data/") and not (ROOT / dep).exists()] == []

    shared = yaml.safe_load((ROOT / "experiments" / "conf" / "default.yaml").read_text())
    launcher = {f"perceptrail.{shared['launcher']}.launcher"} & imports.modules
    needed = imported(ROOT / "experiments" / f"{study}.py", imports.modules) | launcher
    needed = needed.union(*(imports.find_upstream_modules(name) for name in needed))
    files = {name: module_file(name) for name in needed}
    undeclared = {
        name
        for name, path in files.items()
        if not any(path == dep or path.startswith(f"{dep}/") for dep in deps)
    }
    # What every import starts with, which changes no result.
    assert undeclared - {"perceptrail", "perceptrail.lean"} == set()


def imported(path, modules):
    """The modules of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & modules


def module_file(name):
    path = Path("src", *name.split("."))
    inside = path / "__init__.py"
    return (inside if (ROOT / inside).exists() else path.with_suffix(".py")).as_posix()
