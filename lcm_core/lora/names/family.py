"""A family of networks whose LoRAs share their modules' names.

A path is dotted, its block numbers written `{}` in the tables: `double_blocks.{}.img_attn.proj`. A spelling that stands
for several modules, whose rows one weight holds one after another (a fused q, k and v), is a tuple of them. `~` before
a canonical path says that its halves are the other way round where the weight has twice as many rows as columns:
diffusers keeps (scale, shift) where the original networks have (shift, scale).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Paths = str | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Family:
    """A family's tables.

    native: path in the original network, which ComfyUI's has too -> the canonical path, or the fused paths
    diffusers: path in diffusers -> the canonical path or paths, of those that are not spelled so already
    also: what other programs write -> the canonical path or paths
    shared: spellings of these tables that another network has for another layer, read so where the other names of a
            file or a model tell the family
    ratios: canonical path -> rows of its weight for a column, where that tells the family from another
    """

    name: str
    native: Mapping[str, Paths]
    diffusers: Mapping[str, Paths] = field(default_factory=dict)
    also: Mapping[str, Paths] = field(default_factory=dict)
    shared: Collection[str] = ()
    ratios: Mapping[str, int] = field(default_factory=dict)

    def paths(self) -> list[str]:
        """The canonical paths."""
        return list(dict.fromkeys(path.removeprefix("~") for paths in self.native.values() for path in each(paths)))


def each(paths: Paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def same(*paths: str) -> dict[str, Paths]:
    """Paths that the original network and diffusers spell alike."""
    return {path: path for path in paths}


def renamed(native: Mapping[str, Paths]) -> dict[str, Paths]:
    """The paths of a network that diffusers spells as the original does, where the canonical path is another."""
    return {path: canonical for path, canonical in native.items() if path != canonical}


def qkv(prefix: str, names: tuple[str, ...] = ("to_q", "to_k", "to_v")) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# Parts of diffusers' pipelines beside the transformer, whose layers the original network has.
BESIDE = ("text_conditioner.", "connectors.")


def timestep(embedder: str) -> dict[str, Paths]:
    """An embedder of timesteps, whose two layers have one canonical name in all networks."""
    return {f"{embedder}.linear_{i}": f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)}
