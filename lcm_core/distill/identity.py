"""What a training's state must share with the training that goes on from it: settings, network and data, as digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from ..consistency import Prediction
from ..schedule import FlowSchedule, Schedule
from .config import DistillConfig

MAY_CHANGE = ("steps", "learning_rate", "save_every")  # on resuming; steps only where the rate does not decay


class Identified(Protocol):
    @property
    def identity(self) -> Mapping[str, str]: ...


def digest_of(value: Any) -> str:
    """SHA-256, in hexadecimal, of a value of JSON; of a mapping whatever its order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of every tensor's name, dtype, shape and bytes, wherever it lies; any order is the same.

    It reads each tensor once, at 0.4 GB a second and slow core: 4 s for SD1.5's network in float16.
    """

    def digest(t: Tensor) -> str:
        data = t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = pool.map(digest, tensors.values())
        return digest_of(
            {name: [str(t.dtype), list(t.shape), d] for (name, t), d in zip(tensors.items(), digests, strict=True)}
        )


def training_identity(
    weights: Identified, schedule: Schedule, prediction: Prediction, given: Mapping[str, str]
) -> dict[str, str]:
    """What a training is known by beside its settings: `given` by its caller, its weights' own, and the schedule."""
    if isinstance(schedule, FlowSchedule):
        table = f"flow of shift {schedule.flow.shift!r}"
    else:
        table = fingerprint({"alphas_cumprod": schedule.alphas_cumprod})
    return {**given, **weights.identity, "schedule": table, "prediction": prediction}


def all_settings(config: DistillConfig) -> dict[str, Any]:
    """The settings as JSON has them, with the value of every option of the objectives used."""
    return json.loads(json.dumps({**asdict(config), "options": config.resolved}))


def fixed_settings(config: DistillConfig) -> dict[str, Any]:
    """The settings that a resumed training must share, as JSON has them: all but those in MAY_CHANGE.

    A rate that decays is laid out for its number of steps, which is then fixed too: more would raise it again.
    """
    return {
        name: value
        for name, value in all_settings(config).items()
        if name not in MAY_CHANGE or (name == "steps" and config.decay_to < 1)
    }
