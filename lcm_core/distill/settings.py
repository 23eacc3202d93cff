"""The settings of `lcm-lora distill`: presets, a TOML file and the command line, which count in this order."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..files import read_text
from .config import DistillConfig
from .data.prepare import DataSettings

PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.toml"))}
# The command's own settings, beside DistillConfig's, with their defaults.
OWN: dict[str, Any] = {
    "rank": 64, **asdict(DataSettings()), "full": False, "dtype": "float32", "storage": "dtype", "checkpointing": False,
    "validate_every": 100, "keep_every": 0,
}  # fmt: skip
CHOICES = {"dtype": ("float32", "bfloat16", "float16"), "storage": ("dtype", "float8")}
KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def settings_of(args: argparse.Namespace) -> tuple[dict[str, Any], DistillConfig, bool]:
    """From a preset, the TOML file and the command line, which count in this order, the last most: (OWN settings; the
    trainer's config; whether a range of omega was given)."""
    given = read_toml(Path(args.config)) if args.config else {}
    known = [field.name for field in fields(DistillConfig)]
    for name, value in vars(args).items():
        if (name in OWN or name in known) and value is not None:
            given[name] = value
    flags = {name.removeprefix("option "): value for name, value in vars(args).items() if name.startswith("option ")}
    if flags := {name: value for name, value in flags.items() if value is not None}:
        given["options"] = {**given.get("options", {}), **flags}
    preset = read_toml(PRESETS[args.preset]) if args.preset else {}
    full = {"learning_rate": 1e-6, "target_decay": 0.95, "dtype": "float32", "storage": "dtype"}
    options = preset.pop("options", {}) if given.get("objective") in (None, preset.get("objective")) else {}
    given["options"] = {**options, **given.get("options", {})}
    given = {**preset, **(full if given.get("full", preset.get("full")) else {}), **given}
    unknown = [name for name in given if name not in OWN and name not in known]
    if unknown:
        raise ValueError(f"{args.config} has {', '.join(unknown)}; the settings are {', '.join([*OWN, *known])}")
    if "omega" in given:
        given["omega"] = tuple(given["omega"])
    own = {name: given.pop(name, default) for name, default in OWN.items()}
    for name, value in own.items():
        if type(value) is int and type(OWN[name]) is float:
            own[name] = float(value)
        elif type(value) is not type(OWN[name]):
            raise ValueError(f"{name} is {value!r}; give a {KINDS[type(OWN[name])]}, such as {OWN[name]!r}")
    for name, allowed in CHOICES.items():
        if own[name] not in allowed:
            raise ValueError(f"{name} {own[name]} must be one of {', '.join(allowed)}")
    if own["keep_every"] < 0:
        raise ValueError(f"keep_every {own['keep_every']} must be at least 1, or 0 for never")
    return own, DistillConfig(**given), "omega" in given


def read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError as error:
        raise ValueError("a TOML file needs Python 3.11; give the settings on the command line") from error
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML ({error}); write one setting a line, as rank = 64") from error
