"""Running an entry point: `resume` is expanded, and errors are reported for people."""

import errno
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from perceptrail import config, runs  # noqa: F401  (config registers the resolvers)
from perceptrail.errors import UserError, did_you_mean
from perceptrail.invocation import CONF, typed

FULL_ERROR = "HYDRA_FULL_ERROR"
TRAINING = ("torch", "pytorch_lightning", "mlflow")  # what a search alone does without
OF_PLACES = {  # errors of where a file was to be, not of the program
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
}
INTERRUPTED = 130  # the shell's number for Ctrl-C
NO_OPTION = "Config group override"  # and that a group is given what is no name
TWO_FLAGS = "Only one of --"  # how Hydra begins to say that its flags exclude each other


def execute(task: Callable[[DictConfig], Any], name: str, *, usage: str, first: int = 1) -> None:
    """Run a function of the configuration `name` as a command.

    Its arguments are those of the program from `first` on.
    """
    with errors_for_people(name):
        if {"-h", "--help"} & set(sys.argv):
            print(_help(name, usage=usage))
            return
        sys.argv[first:] = runs.expand_resume(sys.argv[first:])  # further processes read them too
        setbase("1.3")
        parser = get_args_parser()
        try:
            with runs.kept(sys.argv[first:]):
                _run_hydra(
                    args=parser.parse_intermixed_args(sys.argv[first:]),  # flags anywhere
                    args_parser=parser,
                    task_function=task,
                    config_path=str(CONF),
                    config_name=name,
                )
        finally:
            gc.freeze()  # or Python, as it ends, looks for garbage in all of PyTorch: 0.9 s


def _help(name: str, *, usage: str) -> str:
    """What there is to choose; Hydra's own takes a second and a half to say it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg, found = compose(name), GlobalHydra.instance().config_loader()
        presets = {"experiment", "hparams_search"} if name == "train" else set()
        groups = "\n".join(
            f"  {group}: {', '.join(found.get_group_options(group))}"
            for group in found.list_groups("")
            if group in {*cfg, *presets}
        )
    values = OmegaConf.to_yaml(cfg)
    called = typed(name)
    return (
        f"{usage.replace(f'python {name}.py', called)}\nGroups (name=option)\n\n{groups}\n\n"
        f"Values (key=value)\n\n{values}\nHydra's own flags: {called} --hydra-help"
    )


@contextmanager
def _hydra_raising() -> Iterator[None]:
    """Have Hydra raise where it would print and exit."""
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        del os.environ[FULL_ERROR]


@contextmanager
def errors_for_people(name: str = "train") -> Iterator[None]:
    """End the command with one message; HYDRA_FULL_ERROR=1 shows where it comes from."""
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    try:
        with _hydra_raising():
            yield
    except MissingConfigException as error:
        sys.exit(_missing_option(error))
    except OverrideParseException as error:
        sys.exit(f"{error.override}: {str(error).splitlines()[0]}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_composition(error, name))
    except (UserError, YAMLError) as error:  # the latter in a file of one's own
        sys.exit(str(error))
    except ValueError as error:
        if (said := _choice(error)) is None:
            raise
        sys.exit(said)
    except ModuleNotFoundError as error:
        if error.name not in TRAINING:
            raise
        sys.exit(f"{error.name} is not installed: pip install 'perceptrail[train]'")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in OF_PLACES:
            raise
        sys.exit(f"{error.strerror}: {error.filename or 'while writing'}")


def _missing_option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [option for option in error.options or [] if option != name]
    if not group or not options:
        return str(error)
    return f"{group}={name}: must be one of {', '.join(options)}{did_you_mean(name, options)}"


def _choice(error: ValueError) -> str | None:
    """What Hydra says of flags and groups; nothing if the error is another."""
    if str(error).startswith(NO_OPTION):
        return _no_option(sys.argv[1:])
    return str(error) if str(error).startswith(TWO_FLAGS) else None


def _no_option(arguments: Sequence[str]) -> str:
    for argument in arguments:
        group, _, value = argument.lstrip("+").partition("=")
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []
        if options and value not in options:
            return f"{argument}: must be one of {', '.join(options)}"
    return "a group of the configuration must be given the name of one of its options"


def _composition(error: Exception, name: str) -> str:
    unknown = re.search(r"Could not (?:override|find) '([^']+)'", str(error))
    if unknown is None:
        root = error.__cause__ or error
        return (
            f"{error}\n{root}" if root is not error and str(root) not in str(error) else str(error)
        )
    key = unknown[1]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        known = list(_keys(compose(name)))
        groups = GlobalHydra.instance().config_loader().list_groups("")
    hint = did_you_mean(key, [*known, *groups])
    return f"{key}: there is no such key or group{hint}; {typed(name)} --help lists them"


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for name, node in cfg.items_ex(resolve=False):
        yield f"{prefix}{name!s}"
        if isinstance(node, DictConfig):
            yield from _keys(node, f"{prefix}{name!s}.")
