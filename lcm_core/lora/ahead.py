"""A mapping whose values are made by threads, ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Condition
from typing import Generic, TypeVar

import torch

V = TypeVar("V")
P = TypeVar("P")

# At most so many threads, and together at work on so many values, 0.5 GB in float32; one alone on any number.
THREADS, VALUES = 4, 2**27


class Ahead(Mapping[str, V], Generic[V, P]):
    """Name -> what `start` makes of the name's place, anew at every access, in the mapping's order by threads.

    start(place) -> (what makes the value, how many numbers it is made of); both run in a thread, the first may read a
    file. Each thread uses one core, so that the bits don't depend on how many there are, which are torch's at most. A
    name that is asked for out of order, or again, is made then. Errors come with the value that they concern.
    """

    def __init__(self, places: Mapping[str, P], start: Callable[[P], tuple[Callable[[], V], int]]) -> None:
        self._places, self._start = places, start
        self._following = iter(places)
        self._made: dict[str, Future[V]] = {}
        self._taken: set[str] = set()
        self._threads = min(THREADS, torch.get_num_threads())
        self._pool: ThreadPoolExecutor | None = None
        self._room, self._at_work = Condition(), 0

    def __getitem__(self, name: str) -> V:
        if name not in self._made:
            self._submit(name)
        while len(self._made) <= self._threads:
            following = next((other for other in self._following if other not in self._taken), None)
            if following is None:
                break
            self._submit(following)
        return self._made.pop(name).result()

    def _submit(self, name: str) -> None:
        place, inference = self._places[name], torch.is_inference_mode_enabled()

        def run() -> V:
            with torch.inference_mode(inference):
                make, size = self._start(place)
                with self._room_for(size):
                    return make()

        self._pool = self._pool or _pool(self._threads)
        self._made[name] = self._pool.submit(run)
        self._taken.add(name)

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        with self._room:
            self._room.wait_for(lambda: not self._at_work or self._at_work + size <= VALUES)
            self._at_work += size
        try:
            yield
        finally:
            with self._room:
                self._at_work -= size
                self._room.notify_all()

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
