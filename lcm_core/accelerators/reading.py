"""Recipes from JSON: the package's own table, and a user's file that extends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..text import listed, quoted, shortened
from .fields import FINDS, READERS, REQUIRED
from .recipe import Recipe, Span

TABLE = Path(__file__).with_name("recipes.json")


def load_recipes(extra_path: str | Path | None = None) -> tuple[dict[str, Recipe], list[str]]:
    """(recipes by name, what is wrong with the user's file): the package's table, extended by a JSON file.

    The file is an object of entries as `recipes.json` has them, name -> entry; an entry replaces the table's of that
    name. What can't be read is left out, the rest kept, and each fault is one line that names the entry, the field,
    what it has and what was allowed. FileNotFoundError without a file at extra_path, and ValueError for a folder or
    a pipe there.
    """
    recipes = dict(_own())
    if extra_path is None:
        return recipes, []
    from ..files import read_text  # with torch, which the table alone does without

    entries, faults = _entries(read_text(extra_path), str(extra_path))
    for name, entry in entries.items():
        try:
            recipes[name] = read_recipe(name, entry)
        except ValueError as error:
            faults.append(f"{error}; put it right in {shortened(extra_path)}, where the entry is skipped")
    return recipes, faults


@lru_cache(maxsize=1)
def without_recipe() -> dict[str, str]:
    """Pattern as a recipe's `files` have it -> an accelerator without a recipe, as its sampling could not be confirmed.

    A dict that is shared: leave it as it is.
    """
    return dict(json.loads(TABLE.read_text(encoding="utf-8"))["without_recipe"])


def read_recipe(name: str, entry: object) -> Recipe:
    """A recipe of its JSON object; ValueError names the entry, each bad field, what it has and what was allowed."""
    if not name.strip():
        raise ValueError(f"recipe {name!r} has no name; give it one, such as 'sdxl-lightning'")
    if not isinstance(entry, Mapping):
        raise ValueError(f"recipe {quoted(name)} is {quoted(entry)}; it must be an object of fields, such as family")
    faults: list[str] = []
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in READERS:
            faults.append(f"{quoted(key)} is no field (the fields are {', '.join(READERS)})")
            continue
        try:
            values |= READERS[key](value)
        except ValueError as error:
            faults.append(f"{key} is {quoted(value)} and must be {error}")
    faults += [f"{key} is missing and must be {rule}" for key, rule in REQUIRED.items() if key not in entry]
    if not faults:
        faults = _disagreements(values)
    if faults:
        raise ValueError(f"recipe {quoted(name)}: {listed(faults, limit=len(faults))}")
    return Recipe(name=name, **values)


def write_recipe(recipe: Recipe) -> dict[str, Any]:
    """The JSON object that `read_recipe` reads, without what finds the recipe of a file; defaults are left out."""
    entry: dict[str, Any] = {}
    for item in fields(Recipe):
        value, default = getattr(recipe, item.name), item.default
        if item.name in FINDS or item.name in ("name", "given", "default_steps"):
            continue
        if default is not MISSING and value == default:
            continue
        if isinstance(value, Span):
            value = value.low if value.low == value.high else vars(value)
        entry[item.name] = list(value) if isinstance(value, tuple) else value
    if recipe.given:
        entry["grid"] = {recipe.grid: list(recipe.given)}
    entry["steps"] = {"default": recipe.default_steps, "allowed": list(recipe.steps)}
    return entry


@lru_cache(maxsize=1)
def _own() -> dict[str, Recipe]:
    entries = json.loads(TABLE.read_text(encoding="utf-8"))["recipes"]
    return {name: read_recipe(name, entry) for name, entry in entries.items()}


def _entries(text: str, path: str) -> tuple[dict[str, object], list[str]]:
    """The entries of a user's file, the last of each name, and what is wrong with it as a whole."""
    repeated: list[str] = []

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    try:
        entries = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        return {}, [f"{shortened(path)} is no JSON ({shortened(error)}); put it right, none of its recipes is used"]
    if not isinstance(entries, dict):
        return {}, [f"{shortened(path)} holds {quoted(entries)}; it must be an object, name of a recipe -> its fields"]
    return entries, [f"{quoted(key)} is twice in {shortened(path)}, the last counts; keep one" for key in repeated]


def _disagreements(values: Mapping[str, Any]) -> list[str]:
    given, steps = values.get("given", ()), values["steps"]
    if given and steps != (len(given),):
        return [f"steps allows {', '.join(map(str, steps))}, but grid gives {len(given)} {values['grid']}"]
    if values["grid"] == "lcm" and steps[-1] > values.get("original_steps", 50):
        return [f"steps allows {steps[-1]}, more than the {values.get('original_steps', 50)} of original_steps"]
    return []
