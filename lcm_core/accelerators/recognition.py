"""Which recipe a LoRA's file is sampled by, from what the file says and how it is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from ..text import listed, quoted
from .naming import ALSO_FOR, bases_in, file_words, plain
from .reading import load_recipes, without_recipe
from .recipe import Recipe
from .record import SAMPLING, read_sampling

Evidence = Literal["metadata", "modelspec", "sha256", "file name", "modules"]
UNKNOWN = "not known: sampled as an LCM-LoRA; choose a recipe if it is another accelerator"
# Of SAI's ModelSpec, what may name the family; it must begin with the name: "works with LCM-LoRA" says nothing.
TITLE, HINT = "modelspec.title", "modelspec.usage_hint"
ARCHITECTURE = "modelspec.architecture"
NAMING = (SAMPLING, TITLE, HINT)
# What trainers write of their networks; the released LCM-LoRAs have none of it.
TRAINER = "ss_network_module"


@dataclass(frozen=True)
class Recognition:
    """The recipe of a file, None where there is none or more than one; by which evidence; and why, in one line."""

    recipe: Recipe | None
    evidence: Evidence | None
    why: str


def recognize(
    file: str,
    metadata: Mapping[str, str] | None = None,
    *,
    sha256: str | None = None,
    modules: Mapping[str, int | None] | None = None,
    base: str | None = None,
    recipes: Mapping[str, Recipe] | None = None,
) -> Recognition:
    """The recipe of a LoRA's file, never a guess between two.

    What the file's own metadata says (`lcm_lora.sampling`) stands alone. Else modelspec's title and usage hint, the
    SHA-256 of known files and the file's name are read, and must not disagree; the first that speaks is the evidence.
    Else the number of modules and their rank, of files that no trainer signed. A file whose name holds the words of
    two families, and one for another base than the model's, has no recipe, and `why` names both.

    file: its name, with folders if there are any: the folder speaks where the name is a hub's, such as
        pytorch_lora_weights. sha256: of the whole file, in hexadecimal. modules: canonical name -> rank.
    base: the model's, a label of `naming.BASES` or any text that names it, such as `modelspec.architecture`; where it
        may be one of two, both, as in "Wan 2.1 or Wan 2.2". It decides between recipes that fit a name alike.
    recipes: the table; None for the package's.
    """
    metadata = metadata or {}
    recipes = load_recipes()[0] if recipes is None else recipes
    try:
        if (recipe := read_sampling(metadata)) is not None:
            return _for_model(recipe, "metadata", f"the file says so in {SAMPLING}", (), base)
    except ValueError as error:
        return Recognition(None, "metadata", str(error))

    found = [one for text in _texts(file, metadata, sha256, recipes) if (one := _read(text, metadata, base, recipes))]
    for one in found:
        if one.recipe is None:
            return one
        if one.recipe != found[0].recipe:
            return Recognition(None, found[0].evidence, f"{found[0].why}, but {one.why}; choose the recipe")
    return found[0] if found else _by_modules(modules or {}, metadata, recipes, base)


@dataclass(frozen=True)
class _Text:
    """A text in plain words that may name a recipe: what it is, and the recipe that it is known to be of."""

    evidence: Evidence
    source: str
    words: str
    known: Recipe | None = None


def _texts(
    file: str, metadata: Mapping[str, str], sha256: str | None, recipes: Mapping[str, Recipe]
) -> Iterator[_Text]:
    for key in (TITLE, HINT):
        if key in metadata:
            yield _Text("modelspec", key, plain(metadata[key]))
    digest = (sha256 or "").lower()
    for recipe in recipes.values():
        if digest in recipe.sha256:
            yield _Text("sha256", "SHA-256", file_words(recipe.sha256[digest]), recipe)
    yield _Text("file name", "file name", file_words(file))


def _read(
    text: _Text, metadata: Mapping[str, str], base: str | None, recipes: Mapping[str, Recipe]
) -> Recognition | None:
    """What a text says, None if nothing."""
    if text.known:
        matches = _matches(text.words, [text.known], at_start=False) or [text.known]
        strangers = []
    else:
        matches = _matches(text.words, recipes.values(), at_start=text.evidence == "modelspec")
        if len(matches) > 1 and base:
            matches = [recipe for recipe in matches if set(recipe.bases) & set(bases_in(base))] or matches
        # A hint is a sentence, which may speak of others; and where a title names none, it says nothing of any.
        silent = text.source == HINT or (text.source == TITLE and not matches)
        strangers = [] if silent else _strangers(text.words, matches, recipes)
    what = f"the {text.source} ({quoted(text.words)})"
    if len(matches) + len(strangers) > 1:
        names = listed([*(recipe.label for recipe in matches), *strangers], limit=9)
        return Recognition(None, text.evidence, f"{what} names more than one accelerator: {names}; choose the recipe")
    if strangers:
        why = f"{what} names {strangers[0]}, which has no confirmed recipe; choose the recipe that its author gives"
        return Recognition(None, text.evidence, why)
    if not matches:
        return None
    named = bases_in(metadata.get(ARCHITECTURE, "")) or bases_in(text.words)
    return _for_model(matches[0], text.evidence, f"{what} is one of {matches[0].label}", named, base)


def _matches(words: str, recipes: Iterable[Recipe], at_start: bool) -> list[Recipe]:
    """The recipes that a text in plain words names, each for the number of steps that it names."""
    found = []
    for recipe in recipes:
        for pattern in recipe.files:
            match = _compiled(pattern).match(words) if at_start else _compiled(pattern).search(words)
            if match is None:
                continue
            steps = match.groupdict().get("steps")
            if steps is None:
                found.append(recipe)
            elif steps.isdecimal() and int(steps) in recipe.steps:
                found.append(replace(recipe, steps=(int(steps),), default_steps=int(steps)))
            else:
                continue
            break
    return found


def _strangers(words: str, matches: list[Recipe], recipes: Mapping[str, Recipe]) -> list[str]:
    """The families, other than those matched, that a text speaks of where one has matched; and those without recipe."""
    left = words
    for recipe in matches:
        for pattern in recipe.files:
            left = _compiled(pattern).sub(" ", left)
    others = [label for pattern, label in without_recipe().items() if _compiled(pattern).search(left)]
    spoken = set(words.split()) - {word for recipe in matches for word in recipe.words}
    bases = {base for recipe in matches for base in recipe.bases}
    told: set[str] = set()
    for recipe in sorted(recipes.values(), key=lambda recipe: not bases & set(recipe.bases)) if matches else ():
        if new := spoken.intersection(recipe.words) - told:
            told |= new
            others.append(recipe.family)
    return others


def _for_model(recipe: Recipe, evidence: Evidence, why: str, named: tuple[str, ...], base: str | None) -> Recognition:
    """The recognition of a recipe, unless the file is for another base than the model's or the recipe's."""
    model = (bases_in(base) or (base,)) if base else ()
    for bases, whose in ((named, "the file is for"), (model, "the model is")):
        if bases and not set(bases) & set(recipe.bases):
            why = f"{why}, a recipe for {', '.join(recipe.bases)}, but {whose} {', '.join(bases)}; choose another LoRA"
            return Recognition(None, evidence, why)
    fit = {*named, *(ALSO_FOR[base] for base in named if base in ALSO_FOR)}
    if named and model and not fit & set(model):
        why = f"{why}, but the file is for {', '.join(named)} and the model is {', '.join(model)}; choose another LoRA"
        return Recognition(None, evidence, why)
    return Recognition(recipe, evidence, why)


def _by_modules(
    modules: Mapping[str, int | None], metadata: Mapping[str, str], recipes: Mapping[str, Recipe], base: str | None
) -> Recognition:
    ranks = set(modules.values())
    if TRAINER not in metadata and len(ranks) == 1:
        (rank,) = ranks
        for recipe in recipes.values():
            for count, of_rank, for_base in recipe.modules:
                if (count, of_rank) == (len(modules), rank):
                    why = (
                        f"{count} modules of rank {rank}, as {recipe.label} for {for_base} has; others distilled as it "
                        "was have them too, so choose the recipe if it is one of those"
                    )
                    return _for_model(recipe, "modules", why, (for_base,), base)
    return Recognition(None, None, UNKNOWN)


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern that begins and ends between words."""
    return re.compile(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])")
