"""All families' spellings in one table: a path, dotted or flattened, to the canonical paths that it stands for.

Families share canonical paths where they share spellings, so a path alone tells: which network a LoRA is for need not
be known to read it, and a LoRA of another network differs in its sizes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from .family import Family, each

_OTHERS = ("encoders", "family", "table", "unet", "writing")


@cache
def families() -> tuple[Family, ...]:
    """Every family of this package, in the order of the files' names."""
    package = __name__.rpartition(".")[0]
    paths = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(paths) if module.name not in _OTHERS)
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    return tuple(family for module in modules for family in getattr(module, "FAMILIES", ()))


@lru_cache(maxsize=1 << 16)
def canonical_paths(path: str) -> tuple[str, ...]:
    """The canonical paths that a module's path, dotted or flattened, stands for; () if no family has it.

    Several are the parts of a fused weight, in the order of their rows. `~` as in `family`.
    """
    entry = _find(path)
    return tuple(canonical.format(*entry[1]) for canonical in entry[0].paths) if entry else ()


def shared_path(path: str, told: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
    """(a path with its dots, the canonical paths) where it is in `Family.shared` of every family told; None for others.

    told: families' names.
    """
    found = {_shared(family, path) for family in families() if family.name in told}
    return found.pop() if len(found) == 1 else None


def _shared(family: Family, path: str) -> tuple[str, tuple[str, ...]] | None:
    for spelling in family.shared:
        if (blocks := match(spelling, path)) is not None:
            paths = each({**family.native, **family.diffusers}[spelling])
            return spelling.format(*blocks), tuple(path.format(*blocks) for path in paths)
    return None


def is_shared(path: str) -> bool:
    """Whether a path, dotted or flattened, is in `Family.shared` of a family."""
    return shape_of(path)[0] in _shared_shapes()


@cache
def _shared_shapes() -> set[str]:
    return {shape_of(spelling)[0] for family in families() for spelling in family.shared}


def dotted_path(path: str) -> str:
    """A module's path in the spelling that it has, with its dots; another path as it is."""
    entry = _find(path)
    return entry[0].spelling.format(*entry[1]) if entry else path


def is_native(path: str) -> bool:
    """Whether a module's path is an original network's spelling."""
    entry = _find(path)
    return any((entry[0].spelling if entry else path) in family.native for family in families())


def families_with(dotted: Iterable[str], sizes: Mapping[str, tuple[int | None, int | None]]) -> list[str]:
    """The names of the families that have every transformer's module of these, `Spelling.dotted`.

    sizes: canonical name + `.weight` -> its (rows, columns), which count where they leave a family.
    """
    spellings = {entry[0].spelling for name in dotted if (entry := _find(name.removeprefix("transformer.")))}
    if not spellings:
        return []
    shapes = {
        shape_of(name.removeprefix("transformer.").removesuffix(".weight"))[0]: (rows, columns)
        for name, (rows, columns) in sizes.items()
        if rows and columns
    }
    spelled = [family for family in families() if spellings <= _spellings(family)]
    sized = [family for family in spelled if _fits(family, shapes)]
    return [family.name for family in sized or spelled]


def _fits(family: Family, shapes: Mapping[str, tuple[int, int]]) -> bool:
    found = ((shapes.get(shape_of(path)[0], (ratio, 1)), ratio) for path, ratio in family.ratios.items())
    return all(rows == ratio * columns for (rows, columns), ratio in found)


@lru_cache(maxsize=1 << 16)
def shape_of(path: str) -> tuple[str, tuple[str, ...]]:
    """(the flattened path with # for every number, its numbers): alike for all blocks."""
    words = path.replace(".", "_").split("_")
    numbers = tuple(word for word in words if word.isdecimal() or word == "{}")
    return "_".join("#" if word.isdecimal() or word == "{}" else word for word in words), numbers


@dataclass(frozen=True)
class _Entry:
    spelling: str
    literals: tuple[str, ...]
    paths: tuple[str, ...]


def match(pattern: str, path: str) -> list[str] | None:
    """The numbers of a path's blocks, in the order of the pattern's {}; None if it does not fit."""
    shape, literals = shape_of(pattern)
    found, numbers = shape_of(path)
    return _blocks(literals, numbers) if shape == found else None


def _blocks(literals: tuple[str, ...], numbers: tuple[str, ...]) -> list[str] | None:
    pairs = list(zip(literals, numbers, strict=True))
    if all(literal in ("{}", number) for literal, number in pairs):
        return [number for literal, number in pairs if literal == "{}"]
    return None


def _find(path: str) -> tuple[_Entry, list[str]] | None:
    """The entry of a path, and its blocks' numbers."""
    shape, numbers = shape_of(path)
    for entry in _table().get(shape, ()):
        if (blocks := _blocks(entry.literals, numbers)) is not None:
            return entry, blocks
    return None


@cache
def _spellings(family: Family) -> set[str]:
    renamed = {path.removeprefix("~") for paths in family.diffusers.values() for path in each(paths)}
    canonical = set(family.paths()) - renamed
    return {*family.native, *family.diffusers, *family.also, *canonical}


@cache
def _table() -> dict[str, list[_Entry]]:
    """Flattened spelling with # for numbers -> what has it; ValueError where families contradict each other."""
    seen: dict[str, tuple[str, ...]] = {}
    written = [
        item
        for family in families()
        for table in (family.native, family.diffusers, family.also)
        for item in table.items()
        if item[0] not in family.shared
    ]
    for spelling, paths in written:
        if seen.setdefault(spelling, each(paths)) != each(paths):
            raise ValueError(f"{spelling} stands for {seen[spelling]} and for {paths}; give one in every family")
    for path in (path for family in families() for path in family.paths()):
        seen.setdefault(path, (path,))
    table: dict[str, list[_Entry]] = {}
    for spelling, paths in sorted(seen.items(), key=lambda item: item[0].count("{}")):
        shape, literals = shape_of(spelling)
        table.setdefault(shape, []).append(_Entry(spelling, literals, paths))
    return table
