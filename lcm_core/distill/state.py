"""The state of a training on disk: one safetensors file, written whole or not at all, never a pickle.

Its tensors are the trained parameters, their averages, the optimizer's and every step's loss; JSON in its metadata has
the rest: the settings, what the network and the data are known by (see `identity`), and the names of the trained
modules. A checksum over all of it tells a damaged file. Random numbers and the data position follow from the number of
steps done, which is that of the losses.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files import open_safetensors, write_lora
from ..text import listed, shortened
from .config import DistillConfig
from .identity import all_settings, digest_of, fingerprint, fixed_settings

log = logging.getLogger(__name__)

KEY = "lcm_lora.distill"
CHECKSUM = "lcm_lora.distill.sha256"


@dataclass(frozen=True, eq=False)
class Training:
    """What a training changes with every step, and its `identity`; `losses` has one for each step done."""

    identity: Mapping[str, str]
    names: Sequence[str]
    parameters: Sequence[Tensor]
    target: list[Tensor] | None
    ema: list[Tensor] | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: list[float]

    @property
    def weights(self) -> dict[str, Sequence[Tensor]]:
        """By their names in the file."""
        return {"parameters": self.parameters, "average": self.target or (), "ema": self.ema or ()}


class StateFile:
    """The state of a training in a file, or in none: read when it is made, and written by one process."""

    def __init__(self, path: Path | None, config: DistillConfig, training: Training, *, writes: bool):
        self.path, self.config, self.training, self.writes = path, config, training, writes
        if path is not None and path.exists():
            load_state(path, config, training)
        self.saved = len(training.losses)

    def save_if_due(self) -> str | None:
        """`save` every `save_every` steps and after the last."""
        done = len(self.training.losses)
        due = done % self.config.save_every == 0 or done == self.config.steps
        return self.save() if due else None

    def save(self) -> str | None:
        """Write the state unless it is there; returns, and logs, why it could not be written."""
        done = len(self.training.losses)
        if self.path is None or not self.writes or done == self.saved:
            return None
        self.saved = done
        try:
            save_state(self.path, self.config, self.training)
        except OSError as error:
            log.warning("%s", error)
            return str(error)
        return None


def save_state(path: Path, config: DistillConfig, training: Training) -> None:
    """Write the state to `path`, a .safetensors file.

    OSError if it can't be written, which leaves what was at `path`; nothing in memory is changed.
    """
    tensors = {f"{kind}.{i}": p for kind, values in training.weights.items() for i, p in enumerate(values)}
    tensors["losses"] = torch.tensor(training.losses, dtype=torch.float64)
    entries = flat(training.optimizer.state_dict()["state"])
    tensors |= {f"optimizer.{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
    record = json.dumps(
        {
            "settings": all_settings(config), "identity": training.identity, "names": training.names,
            "optimizer": numbers, "groups": groups_of(training.optimizer), "scaler": training.scaler.state_dict(),
        }
    )  # fmt: skip
    try:
        write_lora(path, tensors, {KEY: record, CHECKSUM: checksum(tensors, record)})
    except (OSError, SafetensorError) as error:
        kept = "the file there is still that of an earlier step" if path.exists() else "there is no earlier one"
        said = shortened(error.__cause__ or error)
        raise OSError(
            f"the state after step {len(training.losses)} could not be written to {path} ({said}), and {kept}; make "
            "room or choose another place to be able to resume"
        ) from error


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(record, tensors) of a file of `save_state`. ValueError for another kind of file and for a damaged one."""
    try:
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except ValueError as error:
        said = shortened(error.__cause__ or error)
        raise ValueError(f"{path} is damaged ({said}); delete it or restore a copy") from error
    record = metadata.get(KEY)
    if record is None:
        raise ValueError(f"{path} is not the state of a distillation; name another file, or one that is not there")
    if metadata.get(CHECKSUM) != checksum(tensors, record):
        raise ValueError(f"{path} is damaged (its checksum is another); delete it or restore a copy")
    return json.loads(record), tensors


def load_state(path: Path, config: DistillConfig, training: Training) -> None:
    """Fill parameters, averages, optimizer, scaler and losses of `training` from a file of `save_state`.

    ValueError for another kind of file or a damaged one; for settings, network, data or modules that differ, naming
    which; for more steps done than `config` asks for; and for another learning rate when all of them are done.
    """
    record, tensors = read_state(path)
    # A setting that is newer than the state had what is its default, since it did as that does.
    settings = {**all_settings(DistillConfig()), **record["settings"]}
    now = {**fixed_settings(config), **training.identity}
    there = {**settings, **record["identity"]}
    differing = [
        f"{name} {shortened(there.get(name), 20)} there, {shortened(now.get(name), 20)} now"
        for name in {**now, **record["identity"]}
        if there.get(name) != now.get(name)
    ]
    anew = "begin anew with another state file or state_prefix"
    remedy = f"resume with the same, or {anew}"
    if differing:
        if settings["steps"] != config.steps and config.decay_to < 1:
            remedy += "; the steps of a rate that decays can't be changed"
        raise ValueError(f"{path} is of another training ({listed(differing, 8)}); {remedy}")
    if list(training.names) != record["names"]:
        raise ValueError(
            f"{path} trains {len(record['names'])} modules ({listed(record['names'])}), not the same "
            f"{len(training.names)} ({listed(training.names)}); {remedy}"
        )
    done = len(tensors["losses"])
    if done > config.steps:
        raise ValueError(f"{path} has {done} steps, more than steps {config.steps}; ask for {done} or more, or {anew}")
    if done == config.steps and settings["learning_rate"] != config.learning_rate:
        raise ValueError(
            f"{path} has all its {done} steps, made with learning_rate {settings['learning_rate']:g} there, "
            f"{config.learning_rate:g} now; raise steps to go on with it, or {anew}"
        )
    with torch.no_grad():
        for kind, values in training.weights.items():
            for i, p in enumerate(values):
                p.copy_(tensors[f"{kind}.{i}"])
    entries = {key.removeprefix("optimizer."): t for key, t in tensors.items() if key.startswith("optimizer.")}
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    for key, value in (entries | record["optimizer"]).items():
        i, *outer, entry = key.split(".")
        place = state[int(i)]
        for name in outer:
            place = place.setdefault(name, {})
        place[entry] = value
    optimizer = training.optimizer
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, record.get("groups", [{}] * len(groups)), strict=True):
        group |= saved
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    training.scaler.load_state_dict(record["scaler"])
    training.losses[:] = tensors["losses"].tolist()


def flat(entries: Mapping[Any, Any], before: str = "") -> dict[str, Any]:
    """What an optimizer keeps, by its path: bitsandbytes keeps a dict in that of each parameter."""
    whole: dict[str, Any] = {}
    for key, value in entries.items():
        whole |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return whole


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """The numbers of each parameter group, some of which an optimizer changes, as Prodigy does the rate it finds."""
    return [
        {key: value for key, value in group.items() if isinstance(value, int | float)}
        for group in optimizer.state_dict()["param_groups"]
    ]


def read_losses(path: Path) -> list[float]:
    """The loss of every step in a file of `save_state`; errors are those of `read_state`."""
    return read_state(path)[1]["losses"].tolist()


def checksum(tensors: Mapping[str, Tensor], record: str) -> str:
    return digest_of([fingerprint(tensors), record])
