"""The commands as a user runs them, each checked against the store, the files and the data."""

import csv
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from PIL import Image
from running import ROOT, Command, run

from perceptrail.data.idx import NAMES, read
from perceptrail.model import MLP
from perceptrail.tracking import Store

QUICK = ("experiment=xor", "tracking=none")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mnist_dir):
    """A folder in which a small network has been trained on MNIST, and recorded."""
    folder = tmp_path_factory.mktemp("trained")
    options = ("model.hidden=[64]", "trainer.max_epochs=2", f"data.dir={mnist_dir}")
    run("train.py", *options, cwd=folder)
    return folder


def the_run(folder):
    """The only run directory below a folder."""
    (record,) = folder.glob("outputs/*/*/run.json")
    return record.parent


def client(folder):
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def stored(folder):
    """The MLflow run of the only run directory."""
    return client(folder).get_run(metrics(folder)["run_id"])


def metrics(folder):
    return json.loads((the_run(folder) / "metrics.json").read_text())


def history(run_dir):
    """What each epoch came to, but for the speed, which differs from run to run."""
    with (run_dir / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def test_flags_may_stand_between_overrides(tmp_path):
    plain = ("trainer.max_epochs=1", "figures=false", "tracking=none")
    run("train.py", "experiment=xor", "-m", "seed=0,1", *plain, cwd=tmp_path)
    shown = run("train.py", "experiment=xor", "--cfg", "job", "seed=7", cwd=tmp_path)
    assert len([*tmp_path.glob("multirun/*/*/*/metrics.json")]) == 2
    assert "\nseed: 7\n" in shown.output


def test_a_run_ends_finished_with_all_its_records(trained):
    found = stored(trained)
    assert found.info.status == "FINISHED"
    artifacts = {a.path for a in client(trained).list_artifacts(found.info.run_id)}
    assert {"best.ckpt", "config", "environment", "figures", "history.csv", "metrics.json"} <= (
        artifacts
    )
    figures = {
        Path(a.path).stem for a in client(trained).list_artifacts(found.info.run_id, "figures")
    }
    expected = {"learning_curves", "first_layer_weights"}
    expected |= {"confusion_matrix", "sample_images", "worst_mistakes"}
    assert figures == expected
    for figure in (the_run(trained) / "figures").glob("*.png"):
        with Image.open(figure) as picture:
            assert min(picture.size) > 100


def test_every_config_value_is_a_param(trained):
    config = OmegaConf.load(the_run(trained) / ".hydra" / "config.yaml")
    params = stored(trained).data.params
    assert set(params) == set(leaves(OmegaConf.to_container(config)))
    assert params["model.hidden"] == "[64]"
    assert params["optimizer.lr"] == str(config.optimizer.lr)
    assert params["tracking.uri"] == f"sqlite:///{trained}/mlflow.db"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_metrics_file_and_store_agree(trained):
    file, data = metrics(trained), stored(trained).data.metrics
    for name in ("val/loss", "val/acc", "train/loss", "best/val/acc", "time/fit_s"):
        assert file[name] == pytest.approx(data[name])
    steps = [m.step for m in client(trained).get_metric_history(file["run_id"], "val/acc")]
    assert steps == [430, 860]
    assert file["best_epoch"] in (1, 2)
    assert 0 < file["time/startup_s"] < file["time/total_s"]
    assert any(name.startswith("system/") for name in data) or file["time/fit_s"] < 2


def test_dataset_and_origin_are_recorded(trained):
    found = stored(trained)
    (used,) = found.inputs.dataset_inputs
    assert used.dataset.name == "mnist"
    assert json.loads(used.dataset.profile)["train"] == 55_000
    tags = found.data.tags
    git = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode == 0 and "mlflow.source.git.commit" in tags:
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert "trainer.max_epochs=2" in tags["command"]
    packages = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/environment/packages.txt")
    assert "\ntorch==" in packages


def test_logged_model_predicts_as_the_stored_network(trained, mnist_dir):
    mlflow.set_tracking_uri(f"sqlite:///{trained}/mlflow.db")
    images = read(mnist_dir / NAMES[2])[:50].reshape(50, -1).astype(np.float32) / 255
    model = mlflow.pyfunc.load_model(f"runs:/{metrics(trained)['run_id']}/model")
    network, facts = MLP.load(the_run(trained) / "model")
    import torch

    logits = network(torch.from_numpy(images)).detach().numpy()
    table = model.predict(images)
    assert list(table["label"]) == [facts["classes"][k] for k in logits.argmax(1)]
    assert model.metadata.signature is not None
    assert model.metadata.saved_input_example_info is not None
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{metrics(trained)['run_id']}/model"))
    assert not list(folder.rglob("*.pkl")) + list(folder.rglob("*.pickle"))


def test_evaluate_reads_the_test_split_into_the_same_run(trained, mnist_dir):
    run("evaluate.py", cwd=trained)
    x = read(mnist_dir / NAMES[2]).reshape(10_000, -1).astype(np.float64) / 255
    y = read(mnist_dir / NAMES[3])
    network, _ = MLP.load(the_run(trained) / "model")
    weights = {k: v.numpy().astype(np.float64) for k, v in network.state_dict().items()}
    (w1, b1), (w2, b2) = [
        (weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]) for i in (1, 4)
    ]
    hidden = np.maximum((x - network.mean) / network.std @ w1.T + b1, 0)
    accuracy = float(((hidden @ w2.T + b2).argmax(1) == y).mean())
    assert metrics(trained)["test/acc"] == pytest.approx(accuracy, abs=2e-4)
    data = stored(trained).data.metrics
    assert data["test/acc"] == metrics(trained)["test/acc"]
    assert data["test/loss"] == metrics(trained)["test/loss"]
    assert len(client(trained).search_runs(["1"])) == 1


@pytest.mark.parametrize("name", ["latest", "best", "id", "directory"])
def test_predict_names_the_digits_in_pictures(trained, mnist_dir, tmp_path, name):
    images, labels = read(mnist_dir / NAMES[2]), read(mnist_dir / NAMES[3])
    for n in range(10):
        big = Image.fromarray(255 - images[n]).resize((140, 140), Image.Resampling.BICUBIC)
        big.save(tmp_path / f"{n:02}.png")
    which = {"id": metrics(trained)["run_id"], "directory": str(the_run(trained))}.get(name, name)
    said = run("predict.py", f"run={which}", f"image={tmp_path}", cwd=trained).output
    lines = [line for line in said.splitlines() if ".png" in line]
    answers = [int(line.split(": ")[1][0]) for line in lines]
    assert len(answers) == 10
    assert np.mean(np.array(answers) == labels[:10]) >= 0.9


def test_a_run_from_elsewhere_is_fetched_from_the_store(trained, mnist_dir, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    image = tmp_path / "seven.png"
    Image.fromarray(255 - read(mnist_dir / NAMES[2])[0]).save(image)
    hidden = the_run(trained).rename(tmp_path / "away")
    try:
        store = f"tracking.uri=sqlite:///{trained}/mlflow.db"
        said = run("predict.py", store, "run=latest", f"image={image}", cwd=moved).output
    finally:
        hidden.rename(client(trained).search_runs(["1"])[0].data.tags["perceptrail.run_dir"])
    assert "7" in said.rpartition(": ")[2]


def test_two_runs_of_one_seed_are_the_same(tmp_path):
    few = ("trainer.max_epochs=5", "figures=false")
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        given = (*QUICK, *few, f"seed={seed}", f"hydra.run.dir=outputs/x/{name}")
        run("train.py", *given, cwd=tmp_path)
    a, b, c = (history(tmp_path / "outputs" / "x" / name) for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_interrupted(tmp_path):
    """Killed with SIGKILL at random moments, each time resumed; now and then its recorder too."""
    options = ("experiment=xor", "dropout=linear", "model.dropout=0.2", "trainer.max_epochs=80")
    options += ("callbacks.early_stopping=null", "schedule=cosine")
    run(*("train.py", *options, "tracking=none", "hydra.run.dir=outputs/x/whole"), cwd=tmp_path)
    random = np.random.default_rng(0)
    command = Command("train.py", *options, "hydra.run.dir=outputs/x/killed", cwd=tmp_path)
    run_dir = tmp_path / "outputs" / "x" / "killed"
    wait_for((run_dir / "run.json").exists)
    for kill in range(6):
        more = int(random.integers(0, 12))  # 0: before the first epoch has ended
        goal = more and first_epoch(command) + more
        wait_for(lambda: epochs_done(command.output) >= goal or command.code is not None)  # noqa: B023
        if kill % 3 == 2:
            kill_recorders_of(command.process.pid)
        command.kill()
        assert command.code == -signal.SIGKILL
        command = Command("train.py", "resume=latest", cwd=tmp_path)
    command.wait()
    assert command.code == 0, command.output
    assert history(run_dir) == history(tmp_path / "outputs" / "x" / "whole")
    (found,) = client(tmp_path).search_runs(["1"])
    assert found.info.status == "FINISHED"
    epochs = [m.value for m in client(tmp_path).get_metric_history(found.info.run_id, "epoch")]
    assert epochs == list(range(1, 81))
    one, other = (
        MLP.load(tmp_path / "outputs" / "x" / name / "model")[0].state_dict()
        for name in ("whole", "killed")
    )
    assert all((one[key] == other[key]).all() for key in one)


def first_epoch(command):
    wait_for(lambda: epochs_done(command.output) > 0)
    return epochs_done(command.output)


def epochs_done(output):
    lines = [line for line in output.splitlines() if line.startswith("epoch ")]
    return int(lines[-1].split()[1].partition("/")[0]) if lines else 0


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def kill_recorders_of(pid):
    import psutil

    for child in psutil.Process(pid).children(recursive=True):
        child.kill()


@pytest.mark.slow
def test_eight_at_once_in_an_empty_folder(tmp_path, mnist_dir):
    options = ("data.dir=data", f"data.mirrors=[{mnist_dir}]", "model.hidden=[8]")
    options += ("trainer.max_epochs=1", "hydra.run.dir=outputs/x/${seed}")
    commands = [Command("train.py", *options, f"seed={n}", cwd=tmp_path) for n in range(8)]
    for command in commands:
        command.wait()
        assert command.code == 0, command.output
    runs = client(tmp_path).search_runs(["1"])
    assert [r.info.status for r in runs] == ["FINISHED"] * 8
    assert {r.data.params["seed"] for r in runs} == {str(n) for n in range(8)}


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminate"]
)
def test_an_interrupted_run_is_killed_in_the_store(tmp_path, sent, code):
    command = Command("train.py", "experiment=xor", "trainer.max_epochs=100000", cwd=tmp_path)
    wait_for(lambda: epochs_done(command.output) >= 3)
    os.kill(command.process.pid, sent)
    command.wait()
    assert command.code == code
    assert "Traceback" not in command.output
    assert "train.py resume=outputs/" in command.output
    (found,) = client(tmp_path).search_runs(["1"])
    assert found.info.status == "KILLED"


def test_a_run_that_diverges_has_failed(tmp_path):
    options = ("experiment=xor", "optimizer=sgd", "optimizer.lr=1e30")
    command = Command("train.py", *options, cwd=tmp_path).wait()
    assert command.code == 1
    assert "train/loss became" in command.output
    assert "optimizer.lr" in command.output
    assert "Traceback" not in command.output
    (found,) = client(tmp_path).search_runs(["1"])
    assert found.info.status == "FAILED"
    assert "became" in found.data.tags["mlflow.note.content"]


def test_runs_of_dead_processes_are_ended(tmp_path):
    """As after a power cut, when there was nobody left to end them."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Store(uri, "perceptrail").open_run(
        key="k", name="n", run_dir=str(tmp_path), owner=os.getpid(), tags={}
    )
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE tags SET value = '1@0.00' WHERE key = 'perceptrail.process'")
    database.close()
    assert [r.info.status for r in client(tmp_path).search_runs(["1"])] == ["RUNNING"]
    Store(uri, "perceptrail")
    assert [r.info.status for r in client(tmp_path).search_runs(["1"])] == ["KILLED"]


BAD = {
    "modle=deep": "did you mean 'model'",
    "model=deeep": "did you mean 'deep'",
    "data=mnst": "did you mean 'mnist'",
    "optimizer=adamm": "did you mean 'adam",
    "trainer=gpuu": "did you mean 'gpu'",
    "experiment=xorr": "did you mean 'xor'",
    "schedule=cosin": "did you mean 'cosine'",
    "dropout=lineer": "did you mean 'linear'",
    "tracking=mlfow": "did you mean 'mlflow'",
    "optimizer.lrr=0.1": "did you mean 'optimizer.lr'",
    "model.hiden=[3]": "did you mean 'model.hidden'",
    "trainer.max_epoch=3": "did you mean 'trainer.max_epochs'",
    "sed=3": "did you mean 'seed'",
    "model.activation=rleu": "did you mean 'relu'",
    "model.hidden=[-3]": "positive integers",
    "model.hidden=[1.5]": "positive integers",
    "model.hidden=7": "positive integers",
    "model.dropout=1.0": "[0, 1)",
    "model.dropout=-0.1": "[0, 1)",
    "model.input_dropout=2": "[0, 1)",
    "model.norm=bath": "did you mean 'batch'",
    "data.batch_size=0": "at least 1",
    "data.batch_size=1000000": "training examples",
    "data.val_size=0": "of at least 1",
    "data.val_size=1.5": "share",
    "data.val_size=5000000": "data.val_size=5000000",
    "data.noise=-1": "at least 0",
    "data.bits=1": "from 2 to 20",
    "optimizer.lr=0": "above 0",
    "optimizer.lr=fast": "above 0",
    "optimizer.weight_decay=-1": "at least 0",
    "+optimizer.momentun=1": "optimizer",
    "seed=-1": "4294967295",
    "seed=one": "seed=one",
    "monitor.metric=val/acuracy": "did you mean 'val/acc'",
    "monitor.mode=lowest": "min, max",
    "regularization.label_smoothing=1": "[0, 1)",
    "regularization.max_norm=0": "above 0",
    "dropout.schedule=cosinus": "did you mean 'cosine'",
    "dropout.end=1.5": "[0, 1)",
    "callbacks.early_stopping.patience=0": "at least 1",
    "trainer.max_epochs=0": "at least 1",
    "trainer.accelerator=cuda": "this machine has none",
    "trainer.accelerator=gppu": "did you mean 'gpu'",
    "trainer.precision=8": "bf16-mixed",
    "tracking.uri=./mlruns": "sqlite:///",
    "tracking.uri=http://127.0.0.1:9": "no server answers",
    "tracking.uri=sqlite:////no/such/folder/x.db": "no folder",
    "resume=nothing": "no such run",
    "hydra.run.dir=/dev/null/x": "hydra.run.dir",
    "model.hidden=[3": "model.hidden=[3",
    "unheard=of": "unheard",
    "+model.bogus=1": "model",
    "+regularization.bogus=1": "regularization",
    "+dropout.bogus=1": "dropout",
    "+schedule.bogus=1": "schedule",
    "+trainer.bogus=1": "trainer",
    "+trainer.val_check_interval=2": "every epoch is validated",
    "monitor.metric=val/acc": "monitor.mode=min",
    "data=null": "must be one of arrays, circles",
    "trainer=5": "must be one of auto",
    "distillation=null": "distillation.KEY=",
    "regularization=5": "regularization.KEY=",
    "callbacks.progress=true": "must be null, or have a _target_",
    "trial=5": "{study, number, storage}",
}


@pytest.mark.slow
def test_bad_overrides_get_one_message_and_leave_nothing(tmp_path):
    import torch

    bad = [b for b in BAD if not (b.endswith("=cuda") and torch.cuda.is_available())]
    started = {}
    for n, override in enumerate(bad):
        folder = tmp_path / str(n)
        folder.mkdir()
        started[override] = Command("train.py", "experiment=xor", override, cwd=folder)
        if n % 4 == 3:
            for command in started.values():
                command.wait()
    for n, (override, command) in enumerate(started.items()):
        command.wait()
        said = command.output
        key = override.lstrip("+").partition("=")[0]
        assert command.code == 1, (override, said)
        assert "Traceback" not in said, (override, said)
        assert BAD[override] in said, (override, said)
        assert key in said, (override, said)
        assert len(said.strip().splitlines()) <= 2, (override, said)
        database = tmp_path / str(n) / "mlflow.db"
        if database.exists():
            with sqlite3.connect(database) as connection:
                tables = connection.execute(
                    "SELECT count(*) FROM sqlite_master WHERE name = 'runs'"
                ).fetchone()
                if tables[0]:
                    assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
            connection.close()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("evaluate.py", ["run=nothing"], "run=nothing"),
        ("evaluate.py", ["run=latest", "tracking=none"], "run=latest"),
        ("predict.py", ["image=nothing.png"], "nothing.png"),
        ("predict.py", [], "image"),
        ("train.py", ["-m", "seed=1,2", "--cfg", "hydra"], "--cfg"),
    ],
)
def test_bad_input_to_the_commands(tmp_path, script, arguments, message):
    command = Command(script, *arguments, cwd=tmp_path).wait()
    assert command.code == 1
    assert message in command.output
    assert "Traceback" not in command.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_no_space_left(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        command = Command("train.py", *QUICK, cwd=small).wait()
        assert command.code == 1
        assert "MiB free" in command.output
        assert not (small / "outputs").exists()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["model=deeep"], ["seed=x"]])
def test_light_answers_import_nothing_heavy(tmp_path, arguments):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'mlflow', 'pytorch_lightning', 'sklearn', 'matplotlib', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["[]", "[16]"], ids=["no hidden layer", "one hidden layer"])
def test_xor_needs_a_hidden_layer(tmp_path, hidden):
    options = ("experiment=xor", "tracking=none", "figures=false", f"model.hidden={hidden}")
    run("train.py", "-m", *options, "seed=range(0,10)", "hydra.sweep.dir=m/x/y", cwd=tmp_path)
    files = list(tmp_path.glob("m/x/y/*/metrics.json"))
    accuracies = [json.loads(file.read_text())["best/val/acc"] for file in files]
    assert len(accuracies) == 10
    if hidden == "[]":
        assert max(accuracies) <= 0.75
    else:
        assert sum(accuracy == 1.0 for accuracy in accuracies) >= 9


def test_a_damaged_checkpoint_is_named_and_what_is_there_stays(tmp_path):
    small = ("experiment=xor", "trainer.max_epochs=2", "figures=false", "tracking=none")
    run("train.py", *small, "hydra.run.dir=run", cwd=tmp_path)
    last = tmp_path / "run/last.ckpt"
    whole = last.read_bytes()
    for part in (b"", whole[:3000], whole[:-1]):
        last.write_bytes(part)
        left = {path: path.read_bytes() for path in tmp_path.glob("run/**/*") if path.is_file()}
        resumed = Command("train.py", "resume=run", "trainer.max_epochs=4", cwd=tmp_path).wait()
        assert resumed.code == 1 and "Traceback" not in resumed.output
        assert "resume=run: run/last.ckpt is damaged; without it" in resumed.output
        assert left == {path: path.read_bytes() for path in left}
    last.unlink()
    run("train.py", "resume=run", "trainer.max_epochs=4", cwd=tmp_path)
    rows = (tmp_path / "run/history.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["epoch", "1", "2", "3", "4"]


def contents(folder, *, but=()):
    """Every file below a folder, but those of some names."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in but)
    return {path: path.read_bytes() for path in files}


def refused(said, *arguments, cwd):
    """A command that ends with one message and no traceback."""
    command = Command(*arguments, cwd=cwd).wait()
    assert command.code == 1, command.output
    assert "Traceback" not in command.output
    assert said in command.output


def test_a_directory_with_another_run_s_results_is_refused(tmp_path):
    small = ("train.py", *QUICK, "trainer.max_epochs=2", "figures=false")
    run(*small, "hydra.run.dir=a", cwd=tmp_path)
    run(*small, "-m", "seed=1,2", "hydra.sweep.dir=b", cwd=tmp_path)
    left = contents(tmp_path / "a") | contents(tmp_path / "b")
    said = "hydra.run.dir=a: there is a run with seed=0 instead of 7; resume=a goes on with it"
    refused(said, *small, "hydra.run.dir=a", "seed=7", cwd=tmp_path)
    said = "hydra.sweep.dir=b: there are the runs of experiment=xor "
    for launcher in ((), ("hydra/launcher=fused",)):
        refused(said, *small, "-m", "seed=3,4", "hydra.sweep.dir=b", *launcher, cwd=tmp_path)
    assert contents(tmp_path / "a") | contents(tmp_path / "b") == left
    run(*small, "hydra.run.dir=a", "trainer.max_epochs=3", cwd=tmp_path)
    run(*small, "-m", "seed=1,2", "hydra.sweep.dir=b", cwd=tmp_path)
    assert [row["epoch"] for row in history(tmp_path / "a")] == ["1", "2", "3"]


def test_a_wrong_override_beside_resume_leaves_the_run_as_it_is(tmp_path):
    options = ("experiment=xor", "trainer.max_epochs=2", "figures=false", "hydra.run.dir=a")
    run("train.py", *options, cwd=tmp_path)
    left = contents(tmp_path / "a", but=[".open"])
    for override, said in {
        "model.hidden=[32]": "a/last.ckpt: holds another network, whose network.layers",
        "optimizer=sgd": "a/last.ckpt: holds the state of another optimizer than SGD",
        "data.val_size=100000": "data.val_size=100000: must be",
    }.items():
        refused(said, "train.py", "resume=a", "trainer.max_epochs=4", override, cwd=tmp_path)
        assert contents(tmp_path / "a", but=[".open"]) == left
    refused("resume=a: goes on with one run", "train.py", "-m", "resume=a", cwd=tmp_path)
    (found,) = client(tmp_path).search_runs(["1"])
    assert found.info.status == "FINISHED"
    run("train.py", "resume=a", "trainer.max_epochs=4", cwd=tmp_path)
    assert len(history(tmp_path / "a")) == 4


@pytest.mark.parametrize("name", ["a=b", "é%s", "it's", "a,b(c)[d]{e}#", "a b"])
def test_a_run_is_named_and_gone_on_with_whatever_its_directory_is_called(tmp_path, name):
    quoted = name.replace("'", "\\'")
    small = ("trainer.max_epochs=2", "figures=false", f"hydra.run.dir='{quoted}'")
    said = run("train.py", *QUICK, *small, cwd=tmp_path).output
    for number, typed in enumerate((name, f"'{quoted}'"), 3):
        run("train.py", f"resume={typed}", f"trainer.max_epochs={number}", cwd=tmp_path)
        assert len(history(tmp_path / name)) == number
    (told,) = (line for line in said.splitlines() if line.startswith("next: "))
    _, script, argument = shlex.split(told.removeprefix("next: "))
    judged = run(Path(script).name, argument, "tracking=none", cwd=tmp_path)
    assert "test accuracy" in judged.output


def test_a_damaged_run_is_named_and_hides_no_other(tmp_path):
    run("train.py", *QUICK, "trainer.max_epochs=1", "figures=false", cwd=tmp_path)
    good = the_run(tmp_path)
    for name in ("run.json", "metrics.json", "model/model.json", "model/model.safetensors"):
        for damage in (b"", b"{", b"[]"):
            bad = tmp_path / "bad"
            shutil.copytree(good, bad)
            (bad / name).write_bytes(damage)
            refused(f"bad/{name.partition('.s')[0].removesuffix('/model')}",
                    "evaluate.py", "run=bad", "tracking=none", cwd=tmp_path)  # fmt: skip
            shutil.rmtree(bad)
    for name in (".hydra", "model"):
        shutil.copytree(good, bad)
        shutil.rmtree(bad / name)
        refused(f"bad/{name}", "evaluate.py", "run=bad", "tracking=none", cwd=tmp_path)
        shutil.rmtree(bad)
    damaged = tmp_path / "outputs/x/y/run.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    run("train.py", "resume=latest", "trainer.max_epochs=2", cwd=tmp_path)
    assert len(history(good)) == 2


def test_other_data_than_those_of_the_training_are_not_judged_by(tmp_path):
    random = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'ja' if a > b else 'nein'}" for a, b in random.normal(size=(90, 2))]
    table = tmp_path / "my.csv"
    table.write_text("\n".join(["a,b,said", *rows]) + "\n")
    data = ("data=table", "data.path=my.csv", "data.target=said", "trainer.max_epochs=1")
    run("train.py", *data, "tracking=none", "figures=false", "hydra.run.dir=a", cwd=tmp_path)
    judge = ("evaluate.py", "run=a", "tracking=none")
    run(*judge, cwd=tmp_path)
    left = (tmp_path / "a/metrics.json").read_bytes()
    whole = table.read_text()
    for changed in (
        whole.replace("a,b,", "b,a,"),
        whole.replace("ja", "oui"),
        "\n".join(whole.splitlines()[:80]) + "\n",
        whole.replace("a,b,said", "a,b,c,said").replace(",ja", ",1,ja").replace(",n", ",2,n"),
    ):
        table.write_text(changed)
        refused("holds other data than the run was trained on", *judge, cwd=tmp_path)
        assert (tmp_path / "a/metrics.json").read_bytes() == left
    table.write_text(whole)
    ask = ("predict.py", "run=a", "input=my.csv")
    for output, said in {
        "my.csv": "output=my.csv: is what is read",
        "a": "output=a: is a folder",
        "no/told.csv": "output=no/told.csv: there is no folder no",
        "my.csv/told.csv": "output=my.csv/told.csv: there is no folder my.csv",
    }.items():
        refused(said, *ask, f"output={output}", cwd=tmp_path)
    assert table.read_text() == whole
    assert not list(tmp_path.glob("*.tmp"))


def test_others_may_read_a_stored_network_as_all_beside_it(tmp_path):
    before = os.umask(0o022)
    try:
        MLP(2, 3, hidden=[4]).save(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_a_run_of_a_stack_has_nothing_to_go_on_from_and_stays_as_it_is(tmp_path):
    jobs = ("-m", "hydra/launcher=fused", "seed=0,1", "hydra.sweep.dir=stack")
    small = ("experiment=xor", "trainer.max_epochs=2", "figures=false")
    run("train.py", *small, *jobs, cwd=tmp_path)
    files = [path for path in tmp_path.glob("stack/**/*") if path.is_file()]
    left = [path.read_bytes() for path in files]
    resumed = Command("train.py", "resume=stack/1", "trainer.max_epochs=4", cwd=tmp_path).wait()
    assert resumed.code == 1 and "Traceback" not in resumed.output
    assert "resume=stack/1: stack/1 was trained in a stack, which stores no" in resumed.output
    assert [path.read_bytes() for path in files] == left
    stored = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (e for e in stored.search_experiments() if e.name != "Default")
    found = stored.search_runs([experiment.experiment_id])
    assert {r.info.status for r in found} == {"FINISHED"}


def test_evaluating_a_multirun_gives_mean_and_deviation(tmp_path):
    options = (*QUICK, "trainer.max_epochs=1", "model.hidden=[2]", "hydra.sweep.dir=multirun/a/b")
    run("train.py", "-m", *options, "seed=0,1,2", cwd=tmp_path)
    said = run("evaluate.py", "run=multirun/a/b", cwd=tmp_path).output
    files = sorted(tmp_path.glob("multirun/a/b/*/metrics.json"))
    accuracies = [json.loads(file.read_text())["test/acc"] for file in files]
    assert len(accuracies) == 3
    expected = f"{np.mean(accuracies):.2%} ± {np.std(accuracies, ddof=1):.2%}"
    assert expected in said


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    options = ("experiment=xor", "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=5")
    command = [sys.executable, str(ROOT / "train.py"), *options]
    subprocess.run(command, cwd=tmp_path, timeout=300, check=True)
    (found,) = client(tmp_path).search_runs(["1"])
    assert found.info.status == "FINISHED"
    assert metrics(tmp_path)["step"] == 5 * 13  # 800 examples, two shares, batches of 32


@pytest.mark.parametrize(
    ("given", "turns"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "unset")],
)
def test_threads_do_not_wait_for_long_unless_told_to(given, turns):
    code = "import os, perceptrail; print(os.environ.get('GOMP_SPINCOUNT', 'unset'))"
    others = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=others | given, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == turns
