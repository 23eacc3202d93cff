"""The cache of a source: shards of what was made of it, each known by what it was made of and how.

A shard's name is a digest of the recipe (what encodes, and how) and of its samples' contents and captions: what has
changed has another name, and is made; what was made by a killed process, or for another training, is found. A note
beside them, by a digest of a part's stamp, says which shards a part has, so that pictures that nobody touched are not
read again. Processes that need the same parts at once share them, by locks where the file system has them; a shard that
two made is that of the first.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ...atomic import fcntl, write_whole
from ..identity import digest_of
from .shards import Made, Shards, open_shards, write_shard
from .source import PART, Part, Sample

log = logging.getLogger(__name__)

FORMAT = 1  # of shards and notes; another is another cache
WAIT = 0.5  # seconds until a process looks again for what others make

T = TypeVar("T")
# samples -> (a sample's number among them, what is made of it), in any order
Make = Callable[[Sequence[Sample]], Iterable[tuple[int, Made]]]


@dataclass(frozen=True)
class Note:
    """Of a part: the names of its shards, how many samples they have, and digests of the contents and captions."""

    shards: tuple[str, ...]
    samples: int
    contents: str
    captions: str


@dataclass(frozen=True)
class Stored:
    """Of a source: its shards, digests of all contents and all captions, and how many samples were made just now."""

    shards: Shards
    contents: str
    captions: str
    made: int


def store(folder: Path, parts: Sequence[Part], recipe: Any, make: Make, report: Callable[[int, int], None]) -> Stored:
    """The shards of all parts in `folder`, of which those that are missing are made, some by other processes perhaps.

    recipe: what decides, beside the samples, what `make` makes, as JSON has it. report(samples done, samples in all);
    their number is an estimate for a source that does not know it. Errors are those of the parts, of `make`, and
    OSError for a folder that can't be written; what was made until then stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    filling = _Filling(folder, digest_of([FORMAT, recipe]), make, sum(part.size for part in parts), report)
    notes: dict[int, Note] = {}
    left = list(range(len(parts)))
    while left:
        for k in left:
            if note := filling.note(parts[k]):
                notes[k] = note
        left = [k for k in left if k not in notes]
        if left:
            time.sleep(WAIT)
    ordered = [notes[k] for k in range(len(parts))]
    files = [folder / name for note in ordered for name in note.shards]
    contents, captions = (digest_of([getattr(note, name) for note in ordered]) for name in ("contents", "captions"))
    return Stored(open_shards(files), contents, captions, filling.made)


class _Filling:
    def __init__(self, folder: Path, recipe: str, make: Make, size: int, report: Callable[[int, int], None]):
        self.folder, self.recipe, self.make, self.size, self.report = folder, recipe, make, size, report
        self.samples, self.share, self.made = 0, 0, 0

    def note(self, part: Part) -> Note | None:
        """A part's note, made if need be; None if another process makes it."""
        stamp = part.stamp()
        path = self.folder / f"{digest_of([self.recipe, stamp])[:32]}.json"
        if stamp is not None and (note := self.read(path)):
            return self.counted(note, part)
        with claimed(self.folder, path.stem) as mine:
            if not mine:
                return None
            if stamp is not None and (note := self.read(path)):
                return self.counted(note, part)
            note = self.fill(part)
        if stamp is not None:
            content = json.dumps(asdict(note)).encode()

            def write(file: BinaryIO) -> None:
                file.write(content)

            write_whole(path, write)
        return note

    def read(self, path: Path) -> Note | None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            entry = json.loads(path.read_bytes())
            note = Note(**entry | {"shards": tuple(entry["shards"])})
            if all((self.folder / name).is_file() for name in note.shards):
                return note
        return None

    def counted(self, note: Note, part: Part) -> Note:
        self.tell(note.samples, part.size)
        return note

    def tell(self, samples: int, share: int) -> None:
        self.samples, self.share = self.samples + samples, self.share + share
        self.report(self.samples, self.total)

    @property
    def total(self) -> int:
        return max(self.samples, round(self.samples * self.size / max(1, self.share)))

    def fill(self, part: Part) -> Note:
        names, contents, captions, before = [], [], [], self.share
        for samples in chunks(part.read(), PART):
            known = [[sample.digest, sample.caption] for sample in samples]
            path = self.folder / f"{digest_of([self.recipe, known])[:32]}.safetensors"
            if path.is_file():
                self.tell(len(samples), sum(map(part.share, samples)))
            else:
                self.write(path, samples, part)
            names.append(path.name)
            contents += [digest for digest, _ in known]
            captions += [caption for _, caption in known]
        self.share = before + part.size
        return Note(tuple(names), len(contents), digest_of(contents), digest_of(captions))

    def write(self, path: Path, samples: Sequence[Sample], part: Part) -> None:
        made: dict[int, Made] = {}
        for i, each in self.make(samples):
            made[i] = each
            self.tell(1, part.share(samples[i]))
        write_shard(path, [made[i] for i in range(len(samples))], self.recipe)
        if not self.made:
            self.warn(path.stat().st_size / len(samples))
        self.made += len(samples)

    def warn(self, size: float) -> None:
        """Log a warning if the disk seems to have no room for what is left, at so many bytes a sample."""
        wanted, free = size * (self.total - self.samples), shutil.disk_usage(self.folder).free
        if wanted > free:
            log.warning(
                f"{self.folder} needs about {wanted / 1e9:.1f} GB more, {size / 1e3:.1f} KB a picture, and its disk "
                f"has {free / 1e9:.1f} GB; make room, or name another folder with --cache"
            )


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items that follow each other."""
    items = iter(items)
    while some := list(itertools.islice(items, size)):
        yield some


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process alone makes what has this name; always where the file system has no locks.

    One byte of one file is locked for each name, which the system frees when the process ends, however it does.
    """
    if fcntl is None:
        yield True
        return
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(name[:15], 16))
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:  # a file system without locks
            yield True
            return
        yield True
