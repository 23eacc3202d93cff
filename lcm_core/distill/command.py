"""`lcm-lora distill`: an LCM-LoRA of a checkpoint, from pictures with captions or from prompts alone."""

from __future__ import annotations

import argparse
import logging
import math
import os
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..files import read_text, write_lora
from ..lora import LoRAVector
from ..lora.sampling import distilled
from ..noise import step_noise
from .adapters import checkpointed, inject_lora
from .config import DistillConfig
from .data.examples import StoredExamples
from .data.prepare import Bars, DataSettings, Preparing
from .flow_pipeline import FlowTeacher
from .objectives import OBJECTIVES
from .pipeline import Teacher, load_teacher, read_prompts
from .trainer import distill
from .useful import advice, useful_guidance

log = logging.getLogger(__name__)

MEASURED = 16  # latents by which the useful guidance is measured


def run(args: argparse.Namespace, progress: Bars) -> dict[str, Any]:
    """Distils as the arguments of `lcm-lora distill` say, and returns what the command prints.

    progress(what) is a context that gives report(done, total). Errors are those of the parts.
    """
    rank, data, config, chosen = settings_of(args)
    state = Path(args.state or Path(args.output).with_suffix(".state.safetensors"))
    if state.exists() and not args.resume:
        raise ValueError(f"{state} is the state of an earlier training; go on from it with --resume, or delete it")
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=args.device == "cpu")
    device = str(accelerator.device) if accelerator else args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    teacher = load_teacher(Path(args.checkpoint), device, getattr(torch, args.dtype), size=data.size)
    if teacher.guides_itself and not chosen:
        config = replace(config, omega=(0.0, 0.0))
    guided = config.omega != (0, 0) or not teacher.guides_itself
    cache = Path(args.cache or Path(args.output).with_suffix(".cache"))
    preparing = Preparing(teacher, data, cache, config.seed, guided, device, progress)
    if args.data:
        prepared = preparing.of_pictures(args.data)
    else:
        prepared = preparing.of_prompts(read_prompts(Path(args.prompts)), args.teacher_steps)
    sizes = ["batch", "size"] + (["frames"] if data.frames > 1 else [])
    identity = {name: str(getattr(data, name)) for name in sizes} | {"dtype": args.dtype} | prepared.identity
    first = accelerator is None or accelerator.is_main_process
    if first and not state.exists() and config.needs_teacher and guided:
        told_of_guidance(teacher, prepared.examples, config)
    torch.manual_seed(config.seed)
    adapter = inject_lora(teacher.network, teacher.targets, rank, clamp=True)
    steps = distill(
        teacher, adapter, prepared.examples, config, schedule=teacher.schedule, prediction=teacher.prediction,
        state=state, identity=identity | teacher.identity, accelerator=accelerator,
    )  # fmt: skip
    losses = []
    state_error = None
    with progress("distil") as report, checkpointed(teacher.network) if args.checkpointing else nullcontext():
        for done in steps:
            losses.append(done.loss)
            state_error = done.state_error
            report(done.step, done.steps)
    adapter.remove()
    vector = LoRAVector(adapter.vector().modules, metadata=teacher.metadata)
    gamma = OBJECTIVES[config.objective].gamma
    vector = vector if gamma is None else distilled(vector, config.links, gamma)
    if first:
        tensors = vector.state_dict(teacher.dialect, torch.float16)
        try:
            write_lora(args.output, tensors, vector.metadata, replace=args.force)
        except FileExistsError as error:
            raise ValueError(
                f"{args.output} was made by another program meanwhile; write what was learned, which {state} has, to "
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
        "modules": len(vector),
        "rank": vector.rank,
        "parameters": vector.parameters,
        "state": str(state),
        "state_error": state_error,
    }


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


def settings_of(args: argparse.Namespace) -> tuple[int, DataSettings, DistillConfig, bool]:
    """From the TOML file, the command line's own values before it: (rank, the data's settings, the trainer's config,
    whether a range of omega was given)."""
    given: dict[str, Any] = {}
    if args.config:
        try:
            import tomllib
        except ModuleNotFoundError as error:
            raise ValueError("a TOML file needs Python 3.11; give the settings on the command line") from error
        try:
            given = tomllib.loads(read_text(args.config))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{args.config} is not TOML ({error}); write one setting a line, as rank = 64") from error
    own = {"rank": 64, **asdict(DataSettings())}
    known = [field.name for field in fields(DistillConfig)]
    for name, value in vars(args).items():
        if (name in own or name in known) and value is not None:
            given[name] = value
    flags = {name.removeprefix("option "): value for name, value in vars(args).items() if name.startswith("option ")}
    given["options"] = {**given.get("options", {}), **{k: v for k, v in flags.items() if v is not None}}
    unknown = [name for name in given if name not in own and name not in known]
    if unknown:
        raise ValueError(f"{args.config} has {', '.join(unknown)}; the settings are {', '.join([*own, *known])}")
    if "omega" in given:
        given["omega"] = tuple(given["omega"])
    values = {name: typed(name, given.pop(name, default), default) for name, default in own.items()}
    return values.pop("rank"), DataSettings(**values), DistillConfig(**given), "omega" in given


def typed(name: str, value: Any, default: Any) -> Any:
    """The value in its default's type; ValueError for one of another, which TOML may have."""
    whole = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
    if type(value) is not type(default) and not whole:
        raise ValueError(f"{name} {value!r} must be of the type of its default, {default!r}")
    return type(default)(value)
