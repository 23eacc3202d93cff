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


def encoders_identity(pipeline: Any) -> str:
    """What decides the latents and conditions that a pipeline of diffusers makes: the weights and settings of its
    autoencoder, its text encoders, and how their tokenizers cut texts."""
    known: list[Any] = []
    for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        if (part := getattr(pipeline, name, None)) is not None:
            known.append([name, fingerprint(dict(part.named_parameters()))])
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        if (part := getattr(pipeline, name, None)) is not None:
            known.append([name, part.get_vocab(), part.model_max_length])
    scales = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    return digest_of([known, [pipeline.vae.config.get(name) for name in scales]])


def training_identity(
    weights: Identified, schedule: Schedule, prediction: Prediction, given: Mapping[str, str]
) -> dict[str, str]:
    """What a training is known by beside its settings: `given` by its caller, its weights' own, and the schedule."""
    return {**given, **weights.identity, "schedule": schedule_identity(schedule), "prediction": prediction}


def schedule_identity(schedule: Schedule) -> str:
    if isinstance(schedule, FlowSchedule):
        return f"flow of shift {schedule.flow.shift!r}"
    return fingerprint({"alphas_cumprod": schedule.alphas_cumprod})


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
