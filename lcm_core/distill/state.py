"""The state of a training on disk: one safetensors file, written whole or not at all, never a pickle.

Its tensors are the trained parameters, their average, the optimizer's and every step's loss; JSON in its metadata has
the rest: the settings and the names of the trained modules. Random numbers and the data position follow from the number
of steps done, which is that of the losses.
"""

from __future__ import annotations

import errno
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files import open_safetensors, write_lora
from ..text import listed
from .config import DistillConfig

KEY = "lcm_lora.distill"
MAY_CHANGE = ("steps", "save_every", "learning_rate")  # on resuming


@dataclass(frozen=True, eq=False)
class Training:
    """What a training changes with every step; `losses` has one for each step done."""

    names: Sequence[str]
    parameters: Sequence[Tensor]
    average: Sequence[Tensor] | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: list[float]


def save_state(path: Path, config: DistillConfig, training: Training) -> None:
    """Write the state to `path`, a .safetensors file.

    OSError if it can't be written, which leaves what was at `path`; nothing in memory is changed.
    """
    tensors = {f"parameters.{i}": p for i, p in enumerate(training.parameters)}
    tensors |= {f"average.{i}": p for i, p in enumerate(training.average or ())}
    tensors["losses"] = torch.tensor(training.losses, dtype=torch.float64)
    numbers: dict[str, Any] = {}
    for i, entries in training.optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{key}"] = value
            else:
                numbers[f"{i}.{key}"] = value
    record = {
        "settings": asdict(config), "names": training.names, "optimizer": numbers,
        "scaler": training.scaler.state_dict(),
    }  # fmt: skip
    try:
        write_lora(path, tensors, {KEY: json.dumps(record)})
    except (OSError, SafetensorError) as error:
        kept = f"the state of {path} is still the earlier one" if path.exists() else "there is no earlier state"
        raise OSError(
            errno.EIO,
            f"the state after step {len(training.losses)} could not be written ({error}); {kept}, and what was learned "
            f"is still in memory: make room or choose another place, save the result, and resume",
            str(path),
        ) from error


def load_state(path: Path, config: DistillConfig, training: Training) -> None:
    """Fill parameters, average, optimizer, scaler and losses of `training` from a file of `save_state`.

    ValueError for another kind of file, for other modules or shapes, and for settings that differ from the file's,
    but for those in MAY_CHANGE.
    """
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise ValueError(f"{path} is not the state of a distillation; name another file, or one that is not there")
        record = json.loads(text)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    differing = [
        f"{name} {record['settings'].get(name)} there, {value} now"
        for name, value in json.loads(json.dumps(asdict(config))).items()
        if name not in MAY_CHANGE and record["settings"].get(name) != value
    ]
    remedy = "resume with the same, or begin anew with another state file"
    if differing:
        raise ValueError(f"{path} was made with other settings ({listed(differing)}); {remedy}")
    names, shapes = training.names, [tuple(p.shape) for p in training.parameters]
    stored = [tuple(tensors[f"parameters.{i}"].shape) for i in range(len(shapes)) if f"parameters.{i}" in tensors]
    if list(names) != record["names"] or shapes != stored:
        raise ValueError(
            f"{path} trains {len(record['names'])} modules ({listed(record['names'])}), not the same {len(names)} "
            f"({listed(names)}) or not of the same shapes; {remedy}"
        )
    with torch.no_grad():
        for kind, values in (("parameters", training.parameters), ("average", training.average or ())):
            for i, p in enumerate(values):
                p.copy_(tensors[f"{kind}.{i}"])
    entries = {key.removeprefix("optimizer."): t for key, t in tensors.items() if key.startswith("optimizer.")}
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    for key, value in (entries | record["optimizer"]).items():
        i, _, entry = key.partition(".")
        state[int(i)][entry] = value
    optimizer = training.optimizer
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    training.scaler.load_state_dict(record["scaler"])
    training.losses[:] = tensors["losses"].tolist()


def read_losses(path: Path) -> list[float]:
    """The loss of every step in a file of `save_state`."""
    with open_safetensors(path) as file:
        return file.get_tensor("losses").tolist()
