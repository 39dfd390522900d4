"""The commands: `perceptrail NAME ...`, or the script of that name.

Each is a module of this folder. Its docstring is its usage. One for which
there is a configuration of its name runs under Hydra.
"""

import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from perceptrail import command
from perceptrail.errors import did_you_mean
from perceptrail.invocation import CONF

NAMES = sorted(module.name for module in iter_modules(__path__))


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in NAMES:
        run(name, first=2)
    elif name in ("-h", "--help"):
        print("perceptrail COMMAND --help says more of each.\n")
        for known in NAMES:
            usage = import_module(f"{__name__}.{known}").__doc__ or ""
            print(f"perceptrail {known:<10} {usage.splitlines()[0]}")
    else:
        sys.exit(
            f"perceptrail {name}: must be one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}"
        )


def run(name: str, *, first: int = 1) -> None:
    """Run a command, whose arguments begin at `first` in those of the program.

    Modules of one's own are found in the current folder, as `python -m` finds them.
    """
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    module = import_module(f"{__name__}.{name}")
    if (CONF / f"{name}.yaml").exists():
        command.execute(module.main, name, usage=module.__doc__ or "", first=first)
    else:
        with command.errors_for_people(name):
            module.main(sys.argv[first:])
