"""How a vector was made, as two entries of its file's metadata.

`lcm_lora.expression` is text such as `compress(0.8*style + 1*lcm, rank=64)`; `lcm_lora.parents` is JSON, a list of
objects with name, file (without its folder), sha256 and weight, the lambda that all of it together gives the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ..files import open_regular

EXPRESSION, PARENTS = "lcm_lora.expression", "lcm_lora.parents"
UNKNOWN = "unsaved"

_NAME = re.compile(r"[A-Za-z_][\w./\\-]*|\"[^\"]*\"")

Metadata = Mapping[str, str]


def file_record(path: str | os.PathLike[str], name: str | None = None) -> dict[str, str]:
    """The record of a vector as it is in a file; its name is the file's unless given; errors are `open_regular`'s."""
    path = Path(path)
    name = path.stem if name is None else name
    parent = {"name": name, "file": path.name, "sha256": sha256_of(path), "weight": 1.0}
    return {EXPRESSION: _quoted(name), PARENTS: json.dumps([parent])}


def sha256_of(path: str | os.PathLike[str]) -> str:
    """A file's SHA-256 in hexadecimal, read once as long as its size and time stay; errors are `open_regular`'s."""
    stat = os.stat(path)
    return _sha256(Path(path), stat.st_size, stat.st_mtime_ns)


def sum_record(metadatas: Sequence[Metadata], weights: Sequence[float]) -> dict[str, str]:
    """The record of sum_i w_i tau_i, from the terms' own metadata; a term without a record is `unsaved`."""
    return {EXPRESSION: " + ".join(_terms(metadatas, weights)).replace(" + -", " - "), **_parents(metadatas, weights)}


def call_record(
    function: str, metadatas: Sequence[Metadata], weights: Sequence[float] | None = None, **options: object
) -> dict[str, str]:
    """The record of a function of vectors, `ties(0.8*style, 1*lcm, density=0.5)`; without weights all are 1, unsaid.

    Options that are None are left out.
    """
    if weights is None:
        terms = [metadata.get(EXPRESSION, UNKNOWN) for metadata in metadatas]
    else:
        terms = _terms(metadatas, weights)
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    whole = weights if weights is not None else [1.0] * len(metadatas)
    return {EXPRESSION: f"{function}({', '.join([*terms, *given])})", **_parents(metadatas, whole)}


def combine_record(
    method: str,
    metadatas: Sequence[Metadata],
    weights: Sequence[float],
    options: Mapping[str, object],
    limits: Mapping[str, object],
) -> dict[str, str]:
    """The record of `combine`: a sum or a call with all of the method's options, compressed where a limit is given."""
    record = sum_record(metadatas, weights) if method == "sum" else call_record(method, metadatas, weights, **options)
    return call_record("compress", [record], None, **limits) if any(limits.values()) else record


def _terms(metadatas: Sequence[Metadata], weights: Sequence[float]) -> list[str]:
    terms = []
    for metadata, weight in zip(metadatas, weights, strict=True):
        term = metadata.get(EXPRESSION, UNKNOWN)
        terms.append(f"{weight:g}*{term if _NAME.fullmatch(term) else f'({term})'}")
    return terms


def _parents(metadatas: Sequence[Metadata], weights: Sequence[float]) -> dict[str, str]:
    merged: dict[str, dict] = {}
    for metadata, weight in zip(metadatas, weights, strict=True):
        for parent in _read_parents(metadata):
            known = merged.setdefault(str(parent["sha256"]), {**parent, "weight": 0.0})
            known["weight"] += parent["weight"] * weight
    return {PARENTS: json.dumps([parent for parent in merged.values() if math.isfinite(parent["weight"])])}


def _read_parents(metadata: Metadata) -> list[dict]:
    """The parents of a record; none where the text is not one that this module writes."""
    try:
        parents = json.loads(metadata.get(PARENTS, "[]"))
        read = [{**parent, "sha256": str(parent["sha256"]), "weight": float(parent["weight"])} for parent in parents]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return []
    return read if all(math.isfinite(parent["weight"]) for parent in read) else []


def _quoted(name: str) -> str:
    """The name as the expression grammar reads it."""
    return name if _NAME.fullmatch(name) else f'"{name}"'


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
