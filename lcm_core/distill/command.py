"""`lcm-lora distill`: an LCM-LoRA of a checkpoint, from pictures with captions or from prompts alone."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..files import read_text, write_lora
from ..lora import LoRAVector
from ..lora.sampling import distilled
from .adapters import checkpointed, inject_lora
from .config import DistillConfig
from .data import Examples, bucket_of, bucket_sizes, encode_pictures, read_folder, sample_latents
from .flow_pipeline import FlowTeacher
from .identity import digest_of
from .objectives import OBJECTIVES
from .pipeline import Teacher, load_teacher, read_prompts
from .trainer import distill

Bars: TypeAlias = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def run(args: argparse.Namespace, progress: Bars) -> dict[str, Any]:
    """Distils as the arguments of `lcm-lora distill` say, and returns what the command prints.

    progress(what) is a context that gives report(done, total). Errors are those of the parts.
    """
    settings, config, guided = settings_of(args)
    state = Path(args.state or Path(args.output).with_suffix(".state.safetensors"))
    if state.exists() and not args.resume:
        raise ValueError(f"{state} is the state of an earlier training; go on from it with --resume, or delete it")
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=args.device == "cpu")
    device = str(accelerator.device) if accelerator else args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    teacher = load_teacher(Path(args.checkpoint), device, getattr(torch, args.dtype), size=settings["size"])
    if teacher.guides_itself and not guided:
        config = replace(config, omega=(0.0, 0.0))
    examples, source = examples_of(args, teacher, settings, config, progress)
    sizes = ["batch", "size"] + (["frames"] if settings["frames"] > 1 else [])
    identity = {name: str(settings[name]) for name in sizes} | {"dtype": args.dtype} | source
    torch.manual_seed(config.seed)
    adapter = inject_lora(teacher.network, teacher.targets, settings["rank"], clamp=True)
    steps = distill(
        teacher, adapter, examples, config, schedule=teacher.schedule, prediction=teacher.prediction, state=state,
        identity=identity | teacher.identity, accelerator=accelerator,
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
    if accelerator is None or accelerator.is_main_process:
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
        "examples": len(examples.latents),
        "loss": sum(tail) / len(tail) if tail else None,
        "modules": len(vector),
        "rank": vector.rank,
        "parameters": vector.parameters,
        "state": str(state),
        "state_error": state_error,
    }


def settings_of(args: argparse.Namespace) -> tuple[dict[str, int], DistillConfig, bool]:
    """From the TOML file, the command line's own values before it: (rank, batch, size and frames; the trainer's config;
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
    own = {"rank": 64, "batch": 4, "size": 512, "frames": 1}
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
    numbers = {name: int(given.pop(name, default)) for name, default in own.items()}
    return numbers, DistillConfig(**given), "omega" in given


def examples_of(
    args: argparse.Namespace,
    teacher: Teacher | FlowTeacher,
    settings: Mapping[str, int],
    config: DistillConfig,
    progress: Bars,
) -> tuple[Examples, dict[str, str]]:
    """The latents and conditions of a folder of pictures, or of what the teacher draws for a file of prompts.

    With them what they were made of, as the identity of a training: the files, since their latents differ in the last
    bits between machines.
    """
    square = (settings["size"], settings["size"])
    seed, guided = config.seed, config.omega != (0, 0) or not teacher.guides_itself
    uncond = teacher.conditions("", square, empty=True) if guided else ()
    if args.data:
        pictures = read_folder(Path(args.data))
        sizes = bucket_sizes(square[0] * square[1], 8 * teacher.cell)
        cond = [teacher.conditions(picture.caption, bucket_of(picture.size, sizes)) for picture in pictures]
        with progress("encode") as report:
            latents = []
            for latent in encode_pictures(pictures, teacher.encode, sizes):
                latents.append(latent)
                report(len(latents), len(pictures))
        source = {
            "pictures": digest_of([hashlib.sha256(picture.path.read_bytes()).hexdigest() for picture in pictures]),
            "captions": digest_of([picture.caption for picture in pictures]),
        }
        return Examples(latents, cond, uncond, settings["batch"], seed), source
    prompts = read_prompts(Path(args.prompts))
    cond = [teacher.conditions(prompt, square) for prompt in prompts]
    shape = teacher.shape(settings["size"], settings["frames"])
    latents = []
    with progress("draw") as report:
        for i, each in enumerate(cond):
            given, without = (tuple(c[None] for c in both) for both in (each, uncond))
            latents += sample_latents(
                teacher, given, without, shape, schedule=teacher.schedule,
                prediction=teacher.prediction, steps=args.teacher_steps, seed=seed, first=i,
            )  # fmt: skip
            report(i + 1, len(cond))
    source = {"prompts": digest_of(prompts), "teacher steps": str(args.teacher_steps)}
    return Examples(latents, cond, uncond, settings["batch"], seed), source
