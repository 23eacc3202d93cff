"""A mapping whose values are made by threads, ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import Generic, TypeVar

import torch

V = TypeVar("V")
P = TypeVar("P")

# At most so many threads, and no further one while those at work make this many values, 0.5 GB in float32.
THREADS, VALUES = 4, 2**27


class Ahead(Mapping[str, V], Generic[V, P]):
    """Name -> what `start` makes of the name's place, anew at every access, in the mapping's order by threads.

    start(place) -> (what makes the value, how many numbers it is made of) is called here and may read a file; what it
    gives runs in a thread. Each uses one core, so that the bits don't depend on how many there are, which are torch's
    at most. A name that is asked for out of order, or again, is made then.
    """

    def __init__(self, places: Mapping[str, P], start: Callable[[P], tuple[Callable[[], V], int]]) -> None:
        self._places, self._start = places, start
        self._following = iter(places)
        self._made: dict[str, tuple[Future[V], int]] = {}
        self._taken: set[str] = set()
        self._threads = min(THREADS, torch.get_num_threads())
        self._pool: ThreadPoolExecutor | None = None

    def __getitem__(self, name: str) -> V:
        if name not in self._made:
            self._submit(name)
        while len(self._made) <= self._threads and sum(size for _, size in self._made.values()) <= VALUES:
            following = next((other for other in self._following if other not in self._taken), None)
            if following is None:
                break
            self._submit(following)
        return self._made.pop(name)[0].result()

    def _submit(self, name: str) -> None:
        make, size = self._start(self._places[name])
        inference = torch.is_inference_mode_enabled()

        def run() -> V:
            with torch.inference_mode(inference):
                return make()

        self._pool = self._pool or _pool(self._threads)
        self._made[name] = (self._pool.submit(run), size)
        self._taken.add(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one core each; the process's own setting stays."""
    before, ready = torch.get_num_threads(), Barrier(threads)

    def settle(_: int) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes the process's setting when it first asks, and keeps it
        ready.wait()

    pool = ThreadPoolExecutor(threads, "lora")
    list(pool.map(settle, range(threads)))
    torch.set_num_threads(before)
    return pool
