"""Lightning's Trainer as the group `trainer` says, and PyTorch made ready for its device."""

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from torch.backends import mps

from perceptrail.build import build
from perceptrail.errors import UserError

log = logging.getLogger(__name__)

OWN = ("cuda_graphs", "matmul_precision")  # keys of the group `trainer` that are not Lightning's
CHUNK = 64  # steps between two looks of Lightning and its callbacks

# Noise about what is meant: a run directory with Hydra's files in it; a rename within PyTorch.
warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated")
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
# Costs time and changes no result.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


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


@cache
def _say_once(line: str) -> None:
    log.info(line)


def make_trainer(trainer: DictConfig, run_dir: Path, callbacks: Sequence[Callback]) -> pl.Trainer:
    """Lightning's Trainer, as the group `trainer` says."""
    use_device(trainer)
    lightnings = {key: value for key, value in trainer.items() if key not in OWN}
    made: pl.Trainer = build(
        DictConfig(lightnings),
        key="trainer",
        callbacks=list(callbacks),
        default_root_dir=run_dir,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    return made


def chunk(trainer: DictConfig) -> int:
    """How many batches to hand over at once: one where Lightning has to see, or count, each."""
    counted = trainer.get("limit_train_batches", 1.0) != 1.0
    return 1 if counted or trainer.devices != 1 else CHUNK
