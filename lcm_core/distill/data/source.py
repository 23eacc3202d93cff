"""What is encoded: samples, in parts that are made and found again on their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

PART = 128  # samples of a part, and of a shard, at most
DRAWN = 16  # prompts of a part


@dataclass(frozen=True)
class Sample:
    """A picture's bytes with its caption, or a prompt, whose content is its number. `name` is for messages."""

    name: str
    content: bytes
    caption: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Part:
    """Samples that follow each other.

    stamp: () -> what is cheap to know and changes when the samples do, as JSON has it, such as names, sizes and times
    of files, or None where nothing can be trusted. read: () -> the samples. size: how much it is of all parts' sizes.
    share: a sample's part of that.
    """

    stamp: Callable[[], Any]
    read: Callable[[], Iterator[Sample]]
    size: int
    share: Callable[[Sample], int] = lambda sample: 1


def prompt_parts(prompts: Sequence[str]) -> list[Part]:
    """The prompts that a teacher draws pictures for; a prompt's place among them is a part of what it is known by."""

    def part(first: int) -> Part:
        some = prompts[first : first + DRAWN]

        def read() -> Iterator[Sample]:
            for i, prompt in enumerate(some, first):
                yield Sample(f"prompt {i + 1}", str(i).encode(), prompt)

        return Part(lambda: [first, *some], read, len(some))

    return [part(first) for first in range(0, len(prompts), DRAWN)]
