"""A new project, from the wheel that a user installs: trained, searched, evaluated, tested."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from running import ROOT

from perceptrail.commands.new import TEMPLATE

TOP = [".gitignore", "README.md", "conf", "own_data.py", "own_model.py", "pyproject.toml"]
TOP += ["tests", "train.py"]


def new(folder, *arguments):
    command = [sys.executable, "-m", "perceptrail", "new", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["lab", "a/b", "."])
def test_laid_down(tmp_path, name):
    here = tmp_path / "my-lab"
    here.mkdir()
    ended = new(here, name)
    assert ended.returncode == 0, ended.stderr
    folder = (here / name).resolve()
    assert sorted(path.name for path in folder.iterdir()) == TOP
    assert (folder / "README.md").read_text().startswith(f"# {folder.name}\n")
    assert f'name = "{folder.name}"' in (folder / "pyproject.toml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["my-lab"]  # no draft is left


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("a file")
    for name, message in [
        ("full", "full: is there"),
        ("file", "file: is there"),
        ("--x", "FOLDER"),
    ]:
        ended = new(tmp_path, name)
        assert ended.returncode == 1
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the built wheel; what else it needs is that of the tests, by a .pth."""
    place = tmp_path_factory.mktemp("installed")
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "build", "-q", "--wheel", "-o", place / "dist", ROOT], check=True)
    (wheel,) = (place / "dist").glob("*.whl")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    subprocess.run([uv, "pip", "install", "-q", "--no-deps", "--python", python, wheel], check=True)
    (site,) = place.glob("venv/lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return wheel, python


@pytest.mark.slow
def test_the_wheel_brings_all_of_it(installed):
    wheel, _ = installed
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "perceptrail"
    for folder in (package / "conf", TEMPLATE):
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {path.relative_to(package.parent).as_posix() for path in files} <= names


@pytest.mark.slow
def test_a_project_trains_searches_and_passes_its_tests(installed, tmp_path):
    _, python = installed
    perceptrail = python.with_name("perceptrail")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def say(*command, cwd=tmp_path / "lab"):
        ended = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    say(perceptrail, "new", "lab", cwd=tmp_path)
    said = say(perceptrail, "train")
    assert "next: perceptrail evaluate run=outputs/" in said
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/lab/mlflow.db" in said
    assert "test accuracy" in say(perceptrail, "evaluate", "run=best")
    said = say(python, "train.py", "-m", "hparams_search=waves", "tracking=none")
    assert "train the best again: python train.py" in said
    assert (tmp_path / "lab" / "searches" / "waves" / "best.yaml").exists()
    assert "3 passed" in say(python, "-m", "pytest", "-q")
    where = "import perceptrail; print(perceptrail.__file__)"
    assert str(python.parents[1]) in say(python, "-c", where)
