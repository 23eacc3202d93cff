"""The optimizers by name: a line of the table each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from .config import DistillConfig


@dataclass(frozen=True)
class Optimizer:
    """kind: its class, module.name. package: what pip installs, if not torch. state: bytes it keeps for each trained
    value, of 4 bytes. rate: a learning rate that suits it, in words. options: beside the rate and the weight decay."""

    kind: str
    package: str | None
    state: int
    rate: str
    options: Mapping[str, Any] = field(default_factory=dict)


BETAS = {"betas": (0.9, 0.999)}
OPTIMIZERS = {
    "adamw": Optimizer("torch.optim.AdamW", None, 8, "1e-4", BETAS),
    "adamw8bit": Optimizer("bitsandbytes.optim.AdamW8bit", "bitsandbytes", 2, "1e-4", BETAS),
    "lion": Optimizer("lion_pytorch.Lion", "lion-pytorch", 4, "1e-5 to 3e-5, a third to a tenth of AdamW's"),
    "prodigy": Optimizer("prodigyopt.Prodigy", "prodigyopt", 16, "1, which multiplies the rate that it finds", BETAS),
}
FUSED = ("cpu", "cuda")


def make_optimizer(config: DistillConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of that name; AdamW is fused where it can be. ImportError, naming it, for a missing package."""
    kind = OPTIMIZERS[config.optimizer]
    module, _, name = kind.kind.rpartition(".")
    try:
        made = getattr(import_module(module), name)
    except ImportError as error:
        raise ImportError(
            f"optimizer {config.optimizer} needs {kind.package} (pip install {kind.package}); or use adamw"
        ) from error
    options = dict(kind.options)
    if config.optimizer == "adamw":
        options["fused"] = parameters[0].device.type in FUSED
    return made(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **options)
