"""How this program was called, and how its other commands are: by scripts or as `perceptrail`."""

import shlex
import sys
from pathlib import Path

CONF = Path(__file__).parent / "conf"  # every choice, a comment for every key
OWN = Path("conf")  # in the current folder: what a project adds to them, or has instead of them


def command_line() -> str:
    """The command line, as one would type it."""
    return shlex.join([*_start(), *sys.argv[1:]])


def folder() -> Path:
    """Where the code is that was called: beside the script, else where one is."""
    return Path(sys.argv[0]).parent if _is_script() else Path()


def program() -> str:
    """What one types to call this program again, before its arguments."""
    start = _start()
    return " ".join(start if start != ["perceptrail"] else [*start, *sys.argv[1:2]])


def typed(name: str) -> str:
    """What one types for a command: its script where that lies beside the one that runs."""
    beside = Path(sys.argv[0]).with_name(f"{name}.py")
    return f"python {beside}" if _is_script() and beside.exists() else f"perceptrail {name}"


def pages(store: str) -> str:
    """What one types to look at the runs in an MLflow store, by its address."""
    if store.startswith("http"):
        return f"look at {store}"
    if Path(sys.argv[0]).resolve().parent == Path.cwd() and Path("Makefile").exists():
        return "make ui"
    return f"mlflow ui --backend-store-uri {shlex.quote(store)}"


def _is_script() -> bool:
    script = Path(sys.argv[0])
    return script.suffix == ".py" and script.stem != "__main__"


def _start() -> list[str]:
    script = Path(sys.argv[0])
    if _is_script():
        return [Path(sys.executable).name, str(script)]
    return [script.parent.name if script.stem == "__main__" else script.name]
