"""Which recipe a LoRA's file is sampled by, from what the file says and how it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
TITLES = ("modelspec.title", "modelspec.usage_hint")
ARCHITECTURE = "modelspec.architecture"
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

    texts: list[tuple[Evidence, str, str]] = [
        ("modelspec", key, plain(metadata[key])) for key in TITLES if metadata.get(key, "").strip()
    ]
    hashes = {key: name for recipe in recipes.values() for key, name in recipe.sha256.items()}
    if sha256 is not None and (known := hashes.get(sha256.lower())):
        texts.append(("sha256", "SHA-256", file_words(known)))
    texts.append(("file name", "file name", file_words(file)))
    named = bases_in(metadata.get(ARCHITECTURE, ""))

    found: list[Recognition] = []
    for evidence, source, words in texts:
        matches = _matches(words, recipes, at_start=evidence == "modelspec")
        if len(matches) > 1 and base:
            matches = [recipe for recipe in matches if set(recipe.bases) & set(bases_in(base))] or matches
        strangers = _strangers(words, matches, recipes)
        if evidence == "modelspec" and not matches:
            continue
        what = f"the {source} ({quoted(words)})"
        if len(matches) + len(strangers) > 1:
            names = listed([*(recipe.label for recipe in matches), *strangers], limit=9)
            return Recognition(None, evidence, f"{what} names more than one accelerator: {names}; choose the recipe")
        if strangers:
            (label,) = strangers
            why = f"{what} names {label}, which has no confirmed recipe; choose the recipe that its author gives"
            return Recognition(None, evidence, why)
        for recipe in matches:
            found.append(
                _for_model(recipe, evidence, f"{what} is one of {recipe.label}", named or bases_in(words), base)
            )
    if found:
        first = found[0]
        for other in found[1:]:
            if first.recipe and other.recipe and other.recipe != first.recipe:
                why = f"{first.why}, but {other.why}; choose the recipe"
                return Recognition(None, first.evidence, why)
        return next((one for one in found if one.recipe is None), first)
    return _by_modules(modules or {}, metadata, recipes, base)


def _matches(words: str, recipes: Mapping[str, Recipe], at_start: bool) -> list[Recipe]:
    """The recipes that a text in plain words names, each for the number of steps that it names."""
    found = []
    for recipe in recipes.values():
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
    spoken = set(words.split()) - {word for recipe in matches for word in recipe.words}
    others = {word: label for word, label in without_recipe().items() if word in spoken}
    bases = {base for recipe in matches for base in recipe.bases}
    for recipe in sorted(recipes.values(), key=lambda recipe: not bases & set(recipe.bases)) if matches else ():
        for word in spoken.intersection(recipe.words):
            others.setdefault(word, recipe.family)
    return list(dict.fromkeys(others.values()))


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
