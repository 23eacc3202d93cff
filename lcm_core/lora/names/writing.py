"""The names that other programs read: a vector's modules in a dialect, fused where the network has one weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from ...dialects import DIALECTS
from ...text import listed
from . import flat
from .encoders import encoder_name
from .family import BESIDE, Family, Paths, each
from .table import families as all_families
from .table import match, shape_of
from .unet import VOCABULARY, to_ldm

_KOHYA_PREFIX = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te_",
    "text_encoder_2": "lora_te2_",
    "transformer": "lora_transformer_",
}
_TRANSFORMER = "transformer."


@dataclass(frozen=True)
class Written:
    """A module in a file: its name there, the canonical names of its parts, and whether its halves are exchanged."""

    name: str
    parts: tuple[str, ...]
    swapped: bool = False


def write_names(
    names: Iterable[str], dialect: str, families: Collection[str] = (), among: Iterable[str] = ()
) -> list[Written]:
    """What modules with these canonical names are called in a file of a dialect, in which those `among` are too.

    kohya: the original network's paths, flattened, as sd-scripts and musubi-tuner write them. peft: diffusers' paths.
    native: the original network's paths, as ComfyUI has them. Parts of a fused weight are one module where all are
    there, else each has diffusers' name. What has no sure dotted name in the host (a UNet's upsampler, whose slot
    depends on the architecture, and an unknown flattened path) is named in kohya's way in native, which the host reads
    too. Text encoders are numbered if there are two. A transformer's modules that several networks have are written for
    those named in `families`.

    Raises ValueError for an unknown dialect, in `peft` for a flattened path whose dots are not known, and in `peft` and
    `kohya` for modules that networks with different names have.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is unknown; use one of {', '.join(DIALECTS)}")
    names = list(names)
    known = {name: _transformer_path(name) for name in (*names, *among)}
    components = {name.partition(".")[0] for name in known}
    fitting = families_of(filter(None, known.values()))
    chosen = [family for family in fitting if family.name in families] or fitting
    paths = [path for name in names if (path := known[name])]
    others = [_single(name, dialect, components) for name in names if not known[name]]
    return [*_transformer(paths, dialect, chosen), *others]


def spell(names: Iterable[str], dialect: str) -> dict[str, str]:
    """Canonical name -> the module's name in a dialect, for all modules of one file; arguments as in `write_names`.

    Parts of a fused weight that are all there have one name.
    """
    return {part: place.name for place in write_names(names, dialect) for part in place.parts}


def native_path(name: str, families: Collection[str] = ()) -> str | None:
    """The original network's path of what holds a transformer's module, if all that have it, or `families`, agree."""
    path = _transformer_path(name)
    if path is None:
        return None
    having = families_of([path])
    named = [family for family in having if family.name in families] or having
    readings = [_readings(family, "native")[shape_of(path)[0]] for family in named]
    found = {
        reading.spelling.format(*blocks)
        for entries in readings
        for reading in entries
        if (blocks := match(reading.pattern, path)) is not None
    }
    return found.pop() if len(found) == 1 else None


def _transformer_path(name: str) -> str | None:
    """The path of a module that some family has."""
    component, _, path = name.partition(".")
    return path if component == "transformer" and families_of([path]) else None


def families_of(paths: Iterable[str]) -> list[Family]:
    """The families that have all the canonical paths."""
    shapes = {shape_of(path)[0] for path in paths}
    return [family for family in all_families() if shapes <= _readings(family, "").keys()]


@dataclass(frozen=True)
class _Reading:
    """What a dialect calls a canonical path: the pattern of one part, all parts, and the spelling."""

    pattern: str
    parts: tuple[str, ...]
    spelling: str
    swapped: bool


@cache
def _readings(family: Family, dialect: str) -> dict[str, list[_Reading]]:
    """Shape of a canonical path -> how a dialect spells it, fused weights before others."""
    plain: dict[str, Paths] = {path: path for path in family.paths()}
    spelled = {"peft": [*family.diffusers.items(), *plain.items()], "": list(plain.items())}
    found: dict[str, list[_Reading]] = {}
    for spelling, paths in spelled.get(dialect, family.native.items()):
        parts = tuple(path.removeprefix("~") for path in each(paths))
        for part in parts:
            entry = _Reading(part, parts, spelling, each(paths)[0].startswith("~"))
            found.setdefault(shape_of(part)[0], []).append(entry)
    return found


def _transformer(paths: list[str], dialect: str, chosen: list[Family]) -> list[Written]:
    written = [_in_family(paths, dialect, family) for family in chosen]
    if all(other == written[0] for other in written):
        return written[0] if written else [Written(_TRANSFORMER + path, (_TRANSFORMER + path,)) for path in paths]
    if dialect == "native":
        return [_as_most_read(path, chosen) for path in paths]
    raise ValueError(
        f"modules such as {listed(paths, 1)} have other names in each of {listed((f.name for f in chosen), 20)}; "
        "save as native, or name the network in the metadata entry lcm_lora.families"
    )


def _as_most_read(path: str, chosen: list[Family]) -> Written:
    """diffusers' name of a module where the families agree on it, which the host reads in most of them."""
    named = {place for family in chosen for place in _in_family([path], "peft", family)}
    return named.pop() if len(named) == 1 else Written(_TRANSFORMER + path, (_TRANSFORMER + path,))


def _in_family(paths: list[str], dialect: str, family: Family) -> list[Written]:
    prefix = {"kohya": _KOHYA_PREFIX["unet"], "peft": _TRANSFORMER, "native": "diffusion_model."}[dialect]
    readings = _readings(family, dialect)
    left = dict.fromkeys(paths)
    written = []
    for path in paths:
        if path not in left:
            continue
        name = _KOHYA_PREFIX["transformer"] + flat(path) if dialect == "kohya" else _TRANSFORMER + path
        parts: tuple[str, ...] = (path,)
        swapped = False
        for reading in readings.get(shape_of(path)[0], ()):
            blocks = match(reading.pattern, path)
            whole = tuple(part.format(*blocks) for part in reading.parts) if blocks is not None else ()
            if whole and all(part in left for part in whole):
                spelling = reading.spelling.format(*(blocks or ()))
                beside = dialect == "peft" and spelling.startswith(BESIDE)
                name = spelling if beside else prefix + (flat(spelling) if dialect == "kohya" else spelling)
                parts, swapped = whole, reading.swapped
                break
        for part in parts:
            del left[part]
        written.append(Written(name, tuple(_TRANSFORMER + part for part in parts), swapped))
    return written


def _single(name: str, dialect: str, components: Collection[str]) -> Written:
    """`components`: those that the file has modules of."""
    if encoders_name := encoder_name(name, dialect, components):
        return Written(encoders_name, (name,))
    component, _, path = name.partition(".")
    dotless = component in _KOHYA_PREFIX and "_" in path and "." not in path and path not in VOCABULARY
    prefix = _KOHYA_PREFIX.get(component, f"{component}_" if path else component)
    prefix = "lora_te1_" if component == "text_encoder" and "text_encoder_2" in components else prefix
    if dialect == "peft":
        if dotless:
            raise ValueError(
                f"{name} lost its dots in a flattened file, so its PEFT name is unknown; save as kohya or native"
            )
        return Written(name, (name,))
    if dialect == "kohya" or dotless or ".upsamplers." in path:
        return Written(prefix + flat(path), (name,))
    return Written("diffusion_model." + to_ldm(path) if component == "unet" else name, (name,))
