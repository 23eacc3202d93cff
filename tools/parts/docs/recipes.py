"""docs/accelerators.md: the table of the recipes, from their data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lcm_core.accelerators import Recipe, Span, load_recipes
from tools.workshop import ROOT, Product, Workshop

FILE = ROOT / "docs" / "accelerators.md"
BEGIN, END = "<!-- Written by tools/make.py. -->\n", "<!-- Up to here. -->\n"
HEADS = ("recipe", "for", "steps", "levels", "γ", "cfg", "strength", "and", "sources")


def products(workshop: Workshop) -> Iterator[Product]:
    yield Product.text(FILE, lambda: written(FILE.read_text(encoding="utf-8")))


def table(recipes: Iterable[Recipe]) -> str:
    """The recipes as Markdown, one a row."""
    rows = [HEADS, ["---"] * len(HEADS), *map(cells, recipes)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cells(recipe: Recipe) -> list[str]:
    levels = ", ".join(f"{level:g}" for level in recipe.given)
    extras = [f"{name} {span(getattr(recipe, name))}" for name in ("guidance", "shift") if getattr(recipe, name)]
    if recipe.expert:
        extras.append(f"on the {recipe.expert}-noise model")
    return [
        f"`{recipe.name}` {recipe.label}",
        ", ".join(recipe.bases),
        counts(recipe),
        f"{recipe.grid}: {levels}" if levels else f"{recipe.grid} grid",
        span(recipe.gamma),
        span(recipe.cfg),
        span(recipe.strength),
        "; ".join([*extras, *([recipe.note] if recipe.note else [])]),
        " ".join(f"[{number}]({address})" for number, address in enumerate(recipe.sources, 1)),
    ]


def counts(recipe: Recipe) -> str:
    """The steps with the default in bold; four or more in a row as first–last."""
    low, high = recipe.steps[0], recipe.steps[-1]
    if len(recipe.steps) > 3 and recipe.steps == tuple(range(low, high + 1)):
        return f"{low}–{high}, **{recipe.default_steps}**"
    return ", ".join(f"**{count}**" if count == recipe.default_steps else str(count) for count in recipe.steps)


def span(value: Span) -> str:
    return f"{value.default:g}" if value.low == value.high else f"**{value.default:g}**, {value.low:g}–{value.high:g}"


def written(text: str) -> str:
    """The document with the table as the data has it."""
    pattern = re.compile(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{FILE.name} has no place for the table; put {BEGIN!r} and {END!r} in it")
    return pattern.sub(lambda _: table(load_recipes()[0].values()), text)
