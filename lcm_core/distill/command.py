"""`lcm-lora distill`: an LCM-LoRA or an LCM of a checkpoint, from pictures with captions or from prompts alone."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import write_lora
from ..lora import LoRAVector, canonical_name
from ..lora.sampling import distilled
from ..noise import step_noise
from ..text import listed
from .adapters import FullWeights, LoRAAdapter, checkpointed, inject_lora
from .batch_loss import Trainable
from .config import DistillConfig
from .data.examples import StoredExamples
from .data.prepare import Bars, DataSettings, Prepared, Preparing
from .flow_pipeline import FlowTeacher
from .identity import all_settings
from .memory import bytes_of, estimate
from .objectives import OBJECTIVES
from .pipeline import Teacher, load_teacher, read_prompts
from .settings import settings_of
from .storage import store_in_float8
from .trainer import distill
from .useful import advice, useful_guidance
from .validation import Validation
from .watch import Watch, tracking

log = logging.getLogger(__name__)

MEASURED = 16  # latents by which the useful guidance is measured
MOST_LOOKED_AT = 8  # pictures of a validation


def run(args: argparse.Namespace, progress: Bars) -> dict[str, Any]:
    """Distils as the arguments of `lcm-lora distill` say, and returns what the command prints.

    progress(what) is a context that gives report(done, total). Errors are those of the parts.
    """
    settings, config, guided = settings_of(args)
    out = Path(args.output)
    state = Path(args.state or out.with_suffix(".state.safetensors"))
    if state.exists() and not args.resume and not args.estimate:
        raise ValueError(f"{state} is the state of an earlier training; go on from it with --resume, or delete it")
    kept = {step: out.with_stem(f"{out.stem}-{step:06}") for step in steps_kept(settings["keep_every"], config.steps)}
    if there := [str(path) for path in kept.values() if path.exists() and not (args.resume or args.force)]:
        raise ValueError(f"{listed(there)} {'is' if len(there) == 1 else 'are'} there already; replace with --force")
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or args.track:
        accelerator = tracking(args.track, out.with_suffix(".training"), cpu=args.device == "cpu")
    device = str(accelerator.device) if accelerator else args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, settings["dtype"])
    teacher = load_teacher(Path(args.checkpoint), device, dtype, size=settings["size"])
    if teacher.guides_itself and not guided:
        config = replace(config, omega=(0.0, 0.0))
    if args.start:
        add_to(teacher.network, LoRAVector.load(args.start))
    asks = config.omega != (0, 0) or not teacher.guides_itself
    data = DataSettings(**{field.name: settings[field.name] for field in fields(DataSettings)})
    cache = Path(args.cache or out.with_suffix(".cache"))
    checkpointing = checkpointed(teacher.network) if settings["checkpointing"] else nullcontext()
    if args.estimate:
        with checkpointing:
            return needed(teacher, weights_of(teacher, settings, config.seed), settings, config)
    prepared = prepare(args, Preparing(teacher, data, cache, config.seed, asks, device, progress))
    looked_at = None
    if args.validate:
        kind = "data" if Path(args.validate).is_dir() else "prompts"
        source = argparse.Namespace(**{**vars(args), "data": None, "prompts": None, kind: args.validate})
        plain = replace(data, views=1, crop="center", flip=False, empty_share=0.0)
        looked_at = prepare(source, Preparing(teacher, plain, cache, config.seed, asks, device, progress)).examples
    writer = accelerator is None or accelerator.is_main_process
    if writer and not state.exists() and config.needs_teacher and asks:
        told_of_guidance(teacher, prepared.examples, config)
    weights = weights_of(teacher, settings, config.seed)
    watch = watch_of(out, looked_at, teacher, weights, settings, config, accelerator)
    sizes = ["batch", "size"] + (["frames"] if settings["frames"] > 1 else [])
    identity = {name: str(settings[name]) for name in sizes} | {"dtype": settings["dtype"]} | prepared.identity
    if settings["storage"] != "dtype":
        identity["storage"] = settings["storage"]
    steps = distill(
        teacher, weights, prepared.examples, config, schedule=teacher.schedule, prediction=teacher.prediction,
        state=state, identity=identity | teacher.identity, accelerator=accelerator,
    )  # fmt: skip
    losses = []
    state_error = None
    with progress("distil") as report, checkpointing, watch:
        for done in steps:
            losses.append(done.loss)
            state_error = done.state_error
            watch(done)
            if writer and done.step in kept:
                write(kept[done.step], teacher, weights, config, force=True)
            report(done.step, done.steps)
    if isinstance(weights, LoRAAdapter):
        weights.remove()
    written = {}
    if writer:
        try:
            written = write(out, teacher, weights, config, force=args.force)
        except FileExistsError as error:
            raise ValueError(
                f"{out} was made by another program meanwhile; write what was learned, which {state} has, to "
                "another name with --resume, or there with --force"
            ) from error
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "output": args.output,
        "steps": config.steps,
        "resumed_after": config.steps - len(losses) or None,
        "examples": len(prepared.examples),
        "encoded" if args.data else "drawn": prepared.made,
        "cache": str(cache),
        "loss": sum(tail) / len(tail) if tail else None,
        **watch.result,
        **written,
        "state": str(state),
        "state_error": state_error,
    }


def steps_kept(every: int, steps: int) -> range:
    """The steps after which what is learned so far is written, beside the last."""
    return range(every, steps, every) if every else range(0)


def prepare(args: argparse.Namespace, preparing: Preparing) -> Prepared:
    """The examples of `--data`, or of `--prompts`."""
    if args.data:
        return preparing.of_pictures(args.data)
    return preparing.of_prompts(read_prompts(Path(args.prompts)), args.teacher_steps)


def weights_of(teacher: Teacher | FlowTeacher, settings: Mapping[str, Any], seed: int) -> LoRAAdapter | FullWeights:
    """What is trained of the teacher's network. ValueError for all weights in another precision than float32."""
    if settings["full"]:
        if settings["dtype"] != "float32" or settings["storage"] != "dtype":
            raise ValueError(
                f"all weights are trained, which {settings['dtype']} weights, stored as {settings['storage']}, are too "
                'coarse for; use float32 and, for speed, autocast = "bfloat16" in --config'
            )
        teacher.take_guidance()
        return FullWeights(teacher.network)
    if settings["storage"] == "float8":
        store_in_float8(teacher.network)
    torch.manual_seed(seed)
    return inject_lora(teacher.network, teacher.targets, settings["rank"], clamp=True)


@torch.no_grad()
def add_to(network: nn.Module, vector: LoRAVector) -> None:
    """Add a vector to a network's weights. ValueError if it has modules that the network has not."""
    modules = {canonical_name(name): module for name, module in network.named_modules()}
    if strange := [name for name in vector.modules if name not in modules]:
        raise ValueError(
            f"the LoRA has {len(strange)} modules that this network has not ({listed(strange)}); give one of its "
            "architecture, without a text encoder's"
        )
    for name in vector.modules:
        weight = modules[name].weight
        weight += vector.delta(name).to(weight)  # type: ignore[operator]


def write(
    path: Path,
    teacher: Teacher | FlowTeacher,
    weights: LoRAAdapter | FullWeights,
    config: DistillConfig,
    *,
    force: bool,
) -> dict[str, Any]:
    """Write what was learned, a LoRA or all of a network's tensors in diffusers' names; returns what it is."""
    if isinstance(weights, FullWeights):
        tensors = teacher.network.state_dict() | weights.weights()
        tensors = {name: t.to(teacher.saved) if t.is_floating_point() else t for name, t in tensors.items()}
        write_lora(path, {name: t.contiguous() for name, t in tensors.items()}, teacher.metadata, replace=force)
        return {"tensors": len(tensors), "parameters": sum(p.numel() for p in weights.parameters())}
    vector = LoRAVector(weights.vector().modules, metadata=teacher.metadata)
    gamma = OBJECTIVES[config.objective].gamma
    vector = vector if gamma is None else distilled(vector, config.links, gamma)
    write_lora(path, vector.state_dict(teacher.dialect, torch.float16), vector.metadata, replace=force)
    return {"modules": len(vector), "rank": vector.rank, "parameters": vector.parameters}


def needed(
    teacher: Teacher | FlowTeacher, weights: Trainable, settings: Mapping[str, Any], config: DistillConfig
) -> dict[str, Any]:
    """The memory of the training, in words, from noise in place of its latents and the empty prompt."""
    size, rows = settings["size"], settings["batch"]
    device = torch.device(next(teacher.network.parameters()).device)
    z = torch.randn(2, *teacher.shape(size, settings["frames"])).to(device)
    cond = tuple(torch.stack([c, c]) for c in teacher.conditions("", (size, size)))
    uncond = cond if config.omega != (0, 0) else ()
    share = -(-rows // int(os.environ.get("WORLD_SIZE", "1")))
    memory = estimate(
        teacher, weights, (z, cond, uncond), config, share, schedule=teacher.schedule, prediction=teacher.prediction
    )
    network = {id(p) for p in teacher.network.parameters()}
    parts = [m for m in teacher.pipeline.components.values() if isinstance(m, nn.Module)]
    others = [p for part in parts for p in part.parameters() if id(p) not in network]
    needs = {
        "frozen weights": memory.frozen,
        "trained weights": memory.trained,
        "optimizer": memory.optimizer,
        f"a step of {share} {'row' if share == 1 else 'rows'}": memory.step,
        "encoders": bytes_of(others),
    }
    free = torch.cuda.mem_get_info(device)[0] + memory.frozen + bytes_of(others) if device.type == "cuda" else None
    return {name: megabytes(size) for name, size in needs.items()} | {
        "together": megabytes(sum(needs.values())),
        "free": None if free is None else megabytes(free),
    }


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


def watch_of(
    out: Path,
    looked_at: StoredExamples | None,
    teacher: Teacher | FlowTeacher,
    weights: Trainable,
    settings: Mapping[str, Any],
    config: DistillConfig,
    accelerator: Any,
) -> Watch:
    """What is written of the training while it runs, beside its output; the examples looked at are of one shape."""
    validation = None
    if looked_at is not None:
        chosen = max(looked_at.order.buckets, key=len)[:MOST_LOOKED_AT]
        z, cond, uncond = looked_at.these(chosen)
        validation = Validation(
            teacher, weights, (z, cond, uncond), config, schedule=teacher.schedule, prediction=teacher.prediction
        )
    return Watch(
        out.with_suffix(".training"), settings["validate_every"], validation, teacher.decode, accelerator,
        {**settings, **all_settings(config)},
    )  # fmt: skip


def told_of_guidance(teacher: Teacher | FlowTeacher, examples: StoredExamples, config: DistillConfig) -> None:
    """Log a warning if the range of ω is far from the guidance that the teacher has use for, on the first batches."""
    batches = map(examples, range(math.ceil(MEASURED / examples.batch)))
    with_noise = (
        (*batch, step_noise(tuple(batch[0].shape), config.seed, 0, range(len(batch[0]))).to(batch[0]))
        for batch in batches
    )
    useful = useful_guidance(teacher, with_noise, schedule=teacher.schedule, prediction=teacher.prediction)
    if said := advice(config.omega, useful):
        log.warning("%s", said)
