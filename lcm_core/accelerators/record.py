"""How a LoRA's own file says that it is sampled: one entry of its metadata, `lcm_lora.sampling`.

The entry is JSON text: a recipe as the table has it, with its name, and without what finds a recipe's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..text import quoted, shortened
from .reading import read_recipe, write_recipe
from .recipe import Recipe

SAMPLING = "lcm_lora.sampling"
# The entry of a sum of accelerators that are sampled differently.
SEVERAL = json.dumps("several")


def sampling_record(recipe: Recipe) -> dict[str, str]:
    """The entry of a file's metadata that says that it is sampled so; `read_sampling` reads it."""
    return {SAMPLING: json.dumps({"name": recipe.name, **write_recipe(recipe)}, ensure_ascii=False)}


def read_sampling(metadata: Mapping[str, str]) -> Recipe | None:
    """The recipe in a file's metadata; None if it says none, and ValueError if what it says can't be read."""
    if SAMPLING not in metadata:
        return None
    text = metadata[SAMPLING]
    if text == SEVERAL:
        raise ValueError(
            "it is a sum of accelerators that are sampled differently, so it has no recipe; add styles to one "
            "accelerator alone, or choose a recipe"
        )
    remedy = "choose a recipe, and save the LoRA again to put the entry right"
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{SAMPLING} in the metadata is no JSON ({shortened(error)}); {remedy}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{SAMPLING} in the metadata is {quoted(text)}, no recipe with a name; {remedy}")
    name = entry.pop("name")
    try:
        return read_recipe(name, entry)
    except ValueError as error:
        raise ValueError(f"{SAMPLING} in the metadata: {error}; {remedy}") from error
