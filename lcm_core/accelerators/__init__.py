"""Recipes of acceleration LoRAs: how each family is sampled, which file is of which family, and what contradicts it."""

from typing import Any

from ..lazy import imported
from .check import contradictions
from .reading import load_recipes
from .recipe import Recipe, Span
from .recognition import NAMING, Recognition, recognize
from .record import SAMPLING, SEVERAL, read_sampling, sampling_record
from .settings import described, lcm_recipe, settled, summary

__all__ = [
    "NAMING",
    "SAMPLING",
    "SEVERAL",
    "Recipe",
    "Recognition",
    "Span",
    "contradictions",
    "described",
    "lcm_recipe",
    "levels",
    "load_recipes",
    "read_sampling",
    "recognize",
    "sampling_record",
    "settled",
    "summary",
]


def __getattr__(name: str) -> Any:
    return imported(__name__, {"levels": "grids"}, name)  # with torch, which nothing else here needs
