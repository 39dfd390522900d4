"""Running an entry point: `resume` is expanded, and errors are reported for people."""

import errno
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from perceptrail import config, runs  # noqa: F401  (config registers the resolvers)
from perceptrail.errors import UserError, did_you_mean

CONF = Path(__file__).parent / "conf"  # every choice, a comment for every key
FULL_ERROR = "HYDRA_FULL_ERROR"
TRAINING = ("torch", "pytorch_lightning", "mlflow")  # what a search alone does without
TWO_FLAGS = "Only one of --"  # how Hydra begins to say that its flags exclude each other


def execute(main: Callable[[], Any], name: str, *, usage: str) -> None:
    """Run a function that `hydra.main` made, as a command that reads `name`.yaml."""
    with errors_for_people():
        if {"-h", "--help"} & set(sys.argv):
            print(_help(name, usage=usage))
            return
        sys.argv[1:] = runs.expand_resume(sys.argv[1:])
        try:
            main()
        finally:
            gc.freeze()  # or Python, as it ends, looks for garbage in all of PyTorch: 0.9 s


def _help(name: str, *, usage: str) -> str:
    """What there is to choose; Hydra's own takes a second and a half to say it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name)
    values = OmegaConf.to_yaml(cfg)
    presets = {"experiment", "hparams_search"} if name == "train" else set()
    folders = sorted(f for f in CONF.iterdir() if f.is_dir() and f.name in {*cfg, *presets})
    groups = "\n".join(
        f"  {folder.relative_to(CONF)}: {', '.join(sorted(f.stem for f in folder.glob('*.yaml')))}"
        for folder in folders
    )
    return (
        f"{usage}\nGroups (name=option)\n\n{groups}\n\nValues (key=value)\n\n{values}\n"
        f"Hydra's own flags: python {name}.py --hydra-help"
    )


@contextmanager
def errors_for_people() -> Iterator[None]:
    """End the program with one message; HYDRA_FULL_ERROR=1 shows where it comes from."""
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    os.environ[FULL_ERROR] = "1"  # Hydra then raises, where it would print and exit
    try:
        yield
    except MissingConfigException as error:
        sys.exit(_missing_option(error))
    except OverrideParseException as error:
        sys.exit(f"{error.override}: {str(error).splitlines()[0]}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_composition(error))
    except UserError as error:
        sys.exit(str(error))
    except ValueError as error:
        if not str(error).startswith(TWO_FLAGS):
            raise
        sys.exit(str(error))
    except ModuleNotFoundError as error:
        if error.name not in TRAINING:
            raise
        sys.exit(f"{error.name} is not installed: pip install 'perceptrail[train]'")
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's number for it
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        sys.exit(f"{error.strerror}: {error.filename or 'while writing'}")


def _missing_option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [option for option in error.options or [] if option != name]
    if not group or not options:
        return str(error)
    return f"{group}={name}: must be one of {', '.join(options)}{did_you_mean(name, options)}"


def _composition(error: Exception) -> str:
    unknown = re.search(r"Could not (?:override|find) '([^']+)'", str(error))
    if unknown is None:
        root = error.__cause__ or error
        return (
            f"{error}\n{root}" if root is not error and str(root) not in str(error) else str(error)
        )
    key = unknown[1]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        known = list(_keys(compose("train")))
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    hint = did_you_mean(key, [*known, *groups])
    return f"{key}: there is no such key or group{hint}; python train.py --help lists them"


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for name, node in cfg.items_ex(resolve=False):
        yield f"{prefix}{name!s}"
        if isinstance(node, DictConfig):
            yield from _keys(node, f"{prefix}{name!s}.")
