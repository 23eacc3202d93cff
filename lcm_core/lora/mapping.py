"""A mapping whose values are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")
P = TypeVar("P")


@dataclass(frozen=True)
class Lazy(Mapping[str, V], Generic[V, P]):
    """Name -> what `make` makes of the name's place, anew at every access."""

    places: Mapping[str, P]
    make: Callable[[P], V]

    def __getitem__(self, name: str) -> V:
        return self.make(self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places
