"""Lightning's Trainer as the group `trainer` says, and PyTorch made ready for its device."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Thread
from traceback import walk_tb
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import BaseFinetuning, Callback, ModelPruning
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.backends import mps
from torch.nn import functional

from perceptrail.build import build, task_name
from perceptrail.config import OWN, REFUSED
from perceptrail.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 64  # batches between two looks of Lightning and its callbacks
# Which Lightning is not given.
SETTINGS = ("cuda_graphs", "deterministic", "matmul_precision", "overfit_batches")
STEPPING = (  # and what `Classifier` does in its stead
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    "limit_train_batches",
)
BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end")
STEP_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
CHANGES = (BaseFinetuning, ModelPruning)  # callbacks that change the network as it is trained

# Noise about what is meant: a run directory with Hydra's files in it; a rename within PyTorch.
warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated")
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # which somebody asked for
# Costs time and changes no result.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
# What is too small for float32's full precision, below 2**-126, counts as zero. Adam's means come
# there 800 steps after a unit has died, and stay; Intel's processors then take up to half of the
# time for them. PyTorch's threads inherit it, so it has to be said before they are started.
torch.set_flush_denormal(True)
# Each step takes the memory that the last one has freed. By itself glibc hands that back to the
# system, which clears it page by page: 60 to 160 pages a step, up to a twentieth of its time.
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
    for option, size in ((-1, 2**28), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(option, size)


def use_device(trainer: DictConfig) -> None:
    """Prepare PyTorch for the device that `trainer.accelerator` says, and name a GPU taken by auto.

    Raises `UserError` if this machine has not got it.
    """
    wanted = trainer.accelerator
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps.is_available()}
    present |= {"auto": True, "gpu": present["cuda"] or present["mps"]}
    if not present.get(wanted, True):
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise UserError(f"trainer.accelerator={wanted}: this machine has none; use {there}")
    if wanted == "auto" and present["cuda"]:
        name = torch.cuda.get_device_name()
        _say_once(f"On the GPU ({name}), the faster one here; trainer=cpu takes the processor")
    on_processor = wanted == "cpu" or (wanted == "auto" and not present["gpu"])
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if on_processor and trainer.precision == "bf16-mixed" and not has_bfloat16:
        _say_once(
            "trainer.precision=bf16-mixed: this processor has no bfloat16 products (AVX512-BF16, "
            "AMX); they are emulated, which is slower than 32-true"
        )
    torch.set_float32_matmul_precision(trainer.matmul_precision)


def _be_deterministic(wanted: bool | str | None) -> None:
    """As Lightning does it; which imports PyTorch's compiler to tell it, for more than a second."""
    torch.set_deterministic_debug_mode(
        "warn" if wanted == "warn" else "error" if wanted else "default"
    )
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read by cuBLAS when it starts
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"  # and by the compiler


def wake(trainer: DictConfig) -> Callable[[], None]:
    """Have a GPU get ready while data are read: the first step of all takes it as long as epochs.

    Returns what waits until it is. Where there are several, or none, nothing is done.
    """
    if not torch.cuda.is_available() or trainer.accelerator == "cpu" or trainer.devices != 1:
        return lambda: None
    _be_deterministic(trainer.get("deterministic"))  # once cuBLAS has started it would be too late

    def make_a_step() -> None:
        with suppress(RuntimeError):  # which the run will meet too
            x = torch.zeros(8, 8, device="cuda", requires_grad=True)
            y = torch.zeros(8, dtype=torch.long, device="cuda")
            functional.cross_entropy(functional.linear(x, x).relu(), y).backward()

    thread = Thread(target=make_a_step)
    thread.start()
    return thread.join


@cache
def _say_once(line: str) -> None:
    log.info(line)


def make_trainer(
    cfg: DictConfig,
    run_dir: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] = (),
) -> pl.Trainer:
    """Lightning's Trainer, as the group `trainer` says; a module of one's own is stepped by it."""
    trainer = cfg.trainer
    use_device(trainer)
    _be_deterministic(trainer.get("deterministic"))
    defaults = {
        "benchmark": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    lightnings = {k: v for k, v in trainer.items() if k not in (*SETTINGS, *STEPPING)}
    if task_name(cfg) == OWN:
        lightnings |= {k: trainer[k] for k in STEPPING if k in trainer}
        lightnings["limit_train_batches"] = part(trainer)["limit"]
    made: pl.Trainer = build(
        DictConfig(defaults | lightnings),
        key="trainer",
        callbacks=list(callbacks),
        default_root_dir=run_dir,
        logger=list(loggers) or False,
        use_distributed_sampler=False,
    )
    return made


def tested(module: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """What a LightningModule of one's own logs of test batches, by its `test_step`.

    One that has none is asked by its `validation_step`. Names come without `test/` or `test_`.
    """
    assert isinstance(module, pl.LightningModule)
    stage = "test" if is_overridden("test_step", module) else "val"
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    judge = trainer.test if stage == "test" else trainer.validate
    (logged,) = judge(module, batches, verbose=False)
    return {name.removeprefix(stage).lstrip("/_"): value for name, value in logged.items()}


def chunk(trainer: DictConfig, callbacks: Iterable[Callback] = ()) -> int:
    """How many batches to hand over at once: one where each has to be seen."""
    seen = trainer.devices != 1 or trainer.get("fast_dev_run") or trainer.get("profiler")
    seen = seen or any(listens(callback, *BATCH_HOOKS, *STEP_HOOKS) for callback in callbacks)
    return 1 if seen else CHUNK


def part(trainer: DictConfig) -> dict[str, Any]:
    """What of the training batches is used, as `DataModule` takes it."""
    over = trainer.get("overfit_batches") or None
    return {"limit": over or trainer.get("limit_train_batches"), "repeat": over is not None}


def stepping(trainer: DictConfig, callbacks: Iterable[Callback]) -> dict[str, Any]:
    """How steps are made, as `Classifier` takes it."""
    told: dict[str, Any] = {"accumulate": trainer.get("accumulate_grad_batches") or 1}
    if (bound := trainer.get("gradient_clip_val")) is not None:
        told |= {"gradient_clip": bound, "clip_by": trainer.get("gradient_clip_algorithm", "norm")}
    told["watched"] = any(isinstance(c, CHANGES) or listens(c, *STEP_HOOKS) for c in callbacks)
    return told


def listens(callback: Callback, *hooks: str) -> bool:
    """Whether a callback of Lightning's, or of one's own, has one of these hooks."""
    kind = type(callback)
    if kind.__module__.startswith("perceptrail."):  # which know of chunks
        return False
    return any(getattr(kind, hook) is not getattr(Callback, hook) for hook in hooks)


def check_callback(name: str, callback: Callback) -> None:
    """Raise `UserError` for a callback that would do nothing, or harm."""
    for kind in type(callback).__mro__:
        if kind.__module__.startswith("pytorch_lightning.") and kind.__name__ in REFUSED:
            raise UserError(f"callbacks.{name}: must be left out: {REFUSED[kind.__name__]}")
    if listens(callback, "on_before_zero_grad"):
        raise UserError(
            f"callbacks.{name}: its on_before_zero_grad would never be called, where Lightning "
            "does not make the steps itself; on_train_batch_start comes before it"
        )


@contextmanager
def blaming(callbacks: Mapping[str, Callback]) -> Iterator[None]:
    """Say which callback has raised an error: a `UserError` with its name."""
    try:
        yield
    except Exception as error:
        frames = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
        for name, callback in callbacks.items():
            if not isinstance(error, UserError) and any(own is callback for own in frames):
                said = f"callbacks.{name}: {type(error).__name__}: {error}"
                raise UserError(said) from error
        raise
