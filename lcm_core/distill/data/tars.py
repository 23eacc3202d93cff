"""Tar files of pictures with captions, as the webdataset library reads them, as a source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...files import open_regular
from .folder import SUFFIXES, stamp_of
from .source import Part, Sample

HEADERS = 2048  # bytes that a tar has beside a sample's own: two headers, and its files filled up to 512
CAPTION = "caption"


def tar_parts(files: Sequence[Path]) -> list[Part]:
    """Tar files as a source, a part each: a sample is a picture with `<key>.txt`, or "caption" in `<key>.json`.

    They are read from beginning to end, by the webdataset library. ImportError without it, FileNotFoundError for no
    file; reading raises ValueError for a sample without picture or caption, with several or an empty one, and for a
    file that is no tar.
    """
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise ImportError("tar files are read by webdataset (pip install webdataset), or give a folder") from error
    if missing := [str(path) for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} does not exist; give tar files, such as 'data/{{000..099}}.tar'")

    def part(path: Path) -> Part:
        return Part(lambda: stamp_of([path.resolve()]), lambda: read_tar(path), path.stat().st_size, share)

    return [part(path) for path in files]


def expanded(pattern: str) -> list[Path]:
    """The paths that braces mean, as in data/{000..099}.tar."""
    from braceexpand import braceexpand  # webdataset needs it

    return [Path(name) for name in braceexpand(pattern)]


def share(sample: Sample) -> int:
    return len(sample.content) + HEADERS


def read_tar(path: Path) -> Iterator[Sample]:
    import tarfile

    from webdataset.tariterators import group_by_keys, tar_file_expander

    with open_regular(path) as stream:
        try:
            for entry in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])):
                yield sample_of(path, entry)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is no readable tar file ({error.args[0]}); get it again") from error


def sample_of(path: Path, entry: dict[str, Any]) -> Sample:
    name = f"{entry['__key__']} of {path}"
    pictures = [content for key, content in entry.items() if f".{key}".endswith(SUFFIXES)]
    if len(pictures) != 1:
        raise ValueError(f"{name} has {len(pictures)} pictures; a sample has one, {', '.join(SUFFIXES)}")
    try:
        caption = entry["txt"].decode() if "txt" in entry else json.loads(entry["json"])[CAPTION]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f'{name} has no caption ({error!r}); give it one as .txt, or as "caption" in .json') from error
    if not str(caption).strip():
        raise ValueError(f"{name} has an empty caption; write what it shows, or leave it out")
    return Sample(name, pictures[0], str(caption).strip())
