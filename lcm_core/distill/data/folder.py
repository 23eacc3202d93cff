"""A folder of pictures with captions, as a source."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from ...files import path_below
from ...text import listed
from .source import PART, Part, Sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SETTLED = 2.0  # seconds since a file's change, before which another change could leave its time as it is


def read_folder(folder: Path) -> dict[str, str]:
    """Name below the folder, with "/" -> caption, of its pictures, sorted by name.

    A caption is in `<name>.txt` beside its picture, or all are in `metadata.jsonl`, lines such as
    {"file_name": "cat.png", "text": "a cat"}. No picture is opened. Raises FileNotFoundError without folder or
    pictures, and ValueError, naming files, for a picture without caption or with an empty one, a caption without
    picture, and a file named twice or outside the folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give one with pictures and their captions")
    files = names_below(folder)
    pictures = sorted((name for name in files if name.lower().endswith(SUFFIXES)), key=lambda name: name.split("/"))
    if not pictures:
        raise FileNotFoundError(f"{folder} has no pictures; put {', '.join(SUFFIXES)} files there")
    table = folder / "metadata.jsonl"
    captions = _metadata(table, set(pictures)) if table.is_file() else _texts(folder, pictures, files)
    missing = [name for name in pictures if name not in captions]
    if missing:
        raise ValueError(
            f"{len(pictures)} pictures, but {len(missing)} without caption ({listed(missing)}); write each one's "
            "beside it, as <name>.txt, or all in metadata.jsonl"
        )
    empty = [name for name in pictures if not captions[name]]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(pictures)} pictures have an empty caption ({listed(empty)}); write what they show, "
            "or move them elsewhere"
        )
    return {name: captions[name] for name in pictures}


def folder_parts(folder: Path) -> list[Part]:
    """The pictures of a folder as a source; errors are those of `read_folder`."""
    captions, root = read_folder(folder), folder.resolve()
    names = list(captions)
    return [_part(root, names[k : k + PART], captions) for k in range(0, len(names), PART)]


def names_below(folder: Path) -> set[str]:
    """The names of the files in a folder and its subfolders, links to folders left out, with "/" between."""
    names: set[str] = set()
    for place, _, files in os.walk(folder):
        below = os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        names.update(("" if below == "./" else below) + file for file in files)
    return names


def stamp_of(paths: Sequence[Path]) -> list[list[Any]] | None:
    """Path, size and time of change of files, or None where one changed just now."""
    stats = [(path, path.stat()) for path in paths]
    if any(time.time() - stat.st_mtime < SETTLED for _, stat in stats):
        return None
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _part(root: Path, names: Sequence[str], captions: Mapping[str, str]) -> Part:
    def stamp() -> Any:
        known = stamp_of([root / name for name in names])
        return known and [known, [captions[name] for name in names]]

    def read() -> Iterator[Sample]:
        for name in names:
            path = root / name
            yield Sample(str(path), path.read_bytes(), captions[name])

    return Part(stamp, read, len(names))


def _texts(folder: Path, pictures: Sequence[str], files: set[str]) -> dict[str, str]:
    beside = {name: f"{name.rpartition('.')[0]}.txt" for name in pictures}
    return {name: (folder / text).read_text(encoding="utf-8").strip() for name, text in beside.items() if text in files}


def _metadata(table: Path, pictures: set[str]) -> dict[str, str]:
    captions: dict[str, str] = {}
    strange = []
    with table.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name, caption = entry["file_name"], str(entry["text"]).strip()
                if name not in pictures:
                    path_below(table.parent, name)
                    name = "/".join(PureWindowsPath(name).parts)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f'line {number} of {table} must be like {{"file_name": "cat.png", "text": "a cat"}}: {error!r}'
                ) from error
            if name in captions:
                raise ValueError(f"line {number} of {table} has {entry['file_name']} again; keep one of its captions")
            if name not in pictures:
                strange.append(entry["file_name"])
            captions[name] = caption
    if strange:
        raise ValueError(f"{table} has captions of {listed(strange)}, which are not there; correct file_name")
    return captions
