"""Lay down a small project: data, a network and configurations of its own, tests.

perceptrail new my-project
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from perceptrail.errors import UserError

TEMPLATE = Path(__file__).parents[1] / "template"
NAME = "my-project"  # what the template calls itself


def main(arguments: list[str]) -> None:
    """Make the folder that the only argument names.

    Raises `UserError` for one that holds something already, which is left as it is.
    """
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("perceptrail new FOLDER: must be given one folder, such as my-project")
    folder = Path(arguments[0])
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"perceptrail new {folder}: is there already, and is not an empty folder")
    lay_down(folder)
    print(f"{folder} is there. Go on with:\n  cd {folder}\n  python train.py\n  python -m pytest")


def lay_down(folder: Path) -> None:
    """Fill a folder that is empty, or not there, with the project: all of it or nothing."""
    name = folder.absolute().name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{name}-") as temporary:
        draft = Path(temporary, name)
        shutil.copytree(TEMPLATE, draft, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("README.md", "pyproject.toml"):
            text = (draft / file).read_text()
            (draft / file).write_text(text.replace(NAME, name))
        folder.mkdir(exist_ok=True)
        for child in draft.iterdir():
            child.rename(folder / child.name)
