"""What can be wrong with a safetensors file: in its bytes, its header, its tensors and its metadata."""

from __future__ import annotations

import json
import math
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from safetensors.torch import save

from .seeds import Seed

ROLES = [
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight", "alpha", "diff"),
    *("diff_b", "dora_scale", "hada_w1_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2", "lokr_t2", "a1.weight"),
    *("oft_blocks", "oft_R.weight", "rescale", "lora_B.bias", "set_weight", "reshape_weight", "x", ""),
]
PREFIXES = ["lora_unet_", "unet.", "diffusion_model.", "lora_te_", "base_model.model.", "transformer.", "lora_te2_", ""]
NAMES = ["", ".", "../../x", "/etc/x", "a" * 5000, "é\u202e\U0001f600", "\x00\n\x1b[31m", "<img src=x onerror=x>"]
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4,
          "I16": 2, "I8": 1, "U8": 1, "U64": 8, "BOOL": 1, "C64": 8, "F4": 1, "nonsense": 4}  # fmt: skip
SIZES = [0, 1, 2, 3, 5, 40_000, 2**31, 2**40, 2**62, 2**63, 2**64, -1]
NUMBERS = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0]
DEEP = "[" * 100_000 + "]" * 100_000
VALUES: list[Any] = [
    *("", "x", "NaN", "1e999", "9" * 400, "-1", "0", None, True, [], {}, [[]], -1, 0, 10**400, 1e308, math.nan),
    *("<script>alert(1)</script>", "\u202e\n\r\x00", "a" * 100_000, {"a": {"b": ["c"]}}),
]
PATTERNS = ["(a+)+$", "(.*)*x", "[", "conv_in", "^unet\\.(.+\\.)+z$", "a" * 2000, ""]


@dataclass
class File:
    """A safetensors file in parts: (name, entry) pairs of its header, its data, its metadata, a config beside it."""

    entries: list[tuple[str, Any]]
    data: bytearray
    metadata: dict[str, Any]
    config: str | None = None
    after: list[str] = field(default_factory=list)  # damage of the bytes, when the rest is done

    def content(self, random: Random) -> bytes:
        parts = [f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in self.entries]
        parts.insert(random.randrange(len(parts) + 1), f'"__metadata__":{json.dumps(self.metadata)}')
        header = ("{" + ",".join(parts) + "}").encode()
        content = bytearray(struct.pack("<Q", len(header)) + header + self.data)
        for kind in self.after:
            _damage_bytes(content, len(header) + 8, kind, random)
        return bytes(content)


def opened(seed: Seed) -> File:
    tensors, metadata = seed
    content = save(tensors, metadata)
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    header.pop("__metadata__", None)
    return File(list(header.items()), bytearray(content[end:]), dict(metadata))


def _damage_bytes(content: bytearray, header: int, kind: str, random: Random) -> None:
    if len(content) < header:  # cut before
        return
    place = random.randrange(len(content))
    if kind == "bits in data" and len(content) > header:
        for _ in range(random.randint(1, 8)):
            content[random.randrange(header, len(content))] ^= 1 << random.randrange(8)
    elif kind.startswith("bits"):
        for _ in range(random.randint(1, 8)):
            content[random.randrange(header)] ^= 1 << random.randrange(8)
    elif kind == "digit in header":
        digits = [i for i in range(8, header) if content[i] in b"0123456789"]
        content[random.choice(digits)] = random.choice(b"0123456789-.e")
    elif kind == "cut":
        del content[place : place + random.randint(1, 40)]
    elif kind == "double":
        content[place:place] = content[place : place + random.randint(1, 40)]
    elif kind == "length":
        content[:8] = struct.pack("<Q", random.choice([0, 1, 7, 2**31, 2**60, 2**63, len(content), len(content) - 8]))
    else:
        del content[place:]


BYTES = ["bits in header", "bits in data", "bits in data", "digit in header", "cut", "double", "length", "truncate"]


def _entry(file: File, random: Random) -> tuple[int, str, Any]:
    i = random.randrange(len(file.entries))
    return i, file.entries[i][0], dict(file.entries[i][1])


def rename(file: File, random: Random) -> None:
    i, name, entry = _entry(file, random)
    stem, dot, role = name.partition(".")
    change = random.randrange(4)
    if change == 0:
        name = f"{stem}.{random.choice(ROLES)}"
    elif change == 1:
        name = random.choice(PREFIXES) + name.replace("lora_unet_", "").replace("unet.", "")
    elif change == 2:
        name = random.choice(NAMES)
    else:
        name = stem.replace(random.choice("abcdeio"), random.choice(NAMES)[:50]) + dot + role
    file.entries[i] = name, entry


def drop(file: File, random: Random) -> None:
    if len(file.entries) > 1:
        del file.entries[random.randrange(len(file.entries))]


def repeat(file: File, random: Random) -> None:
    """A key twice in the JSON, with its own or another's entry."""
    _, name, _ = _entry(file, random)
    file.entries.append((name, _entry(file, random)[2]))


def lie(file: File, random: Random) -> None:
    """Another shape, dtype or place than the data has."""
    i, name, entry = _entry(file, random)
    what = random.randrange(4)
    if what == 0:
        entry["shape"] = [random.choice(SIZES) for _ in range(random.randrange(6))]
    elif what == 1:
        entry["dtype"] = random.choice(list(DTYPES))
    elif what == 2:
        entry["data_offsets"] = [random.choice([*SIZES, *entry["data_offsets"]]) for _ in range(2)]
    else:
        entry[random.choice(list(entry))] = random.choice(VALUES)
    file.entries[i] = name, entry


def remake(file: File, random: Random) -> None:
    """Another honest tensor in place of one: another shape, also a large one, another dtype, other values."""
    i, name, entry = _entry(file, random)
    shape, kind = list(entry["shape"]), entry["dtype"]
    if not isinstance(shape, list) or kind not in DTYPES or random.random() < 0.7:
        shape = [random.choice([0, 1, 2, 3, 4, 8]) for _ in range(random.randrange(5))]
        if shape and random.random() < 0.3:
            shape[random.randrange(len(shape))] = random.choice([1000, 40_000])
    if random.random() < 0.3 or kind not in DTYPES:
        kind = random.choice(list(DTYPES)[:-2])
    if not all(isinstance(size, int) and 0 <= size <= 40_000 for size in shape) or math.prod(shape) > 200_000:
        shape = [1, 2]
    data = random.randbytes(math.prod(shape) * DTYPES[kind])
    if kind == "F32":
        value = random.choice([*NUMBERS, 1.0, 1.0, 1.0])
        data = struct.pack("<f", value) * math.prod(shape)
    start = len(file.data)
    file.data += data
    file.entries[i] = name, {"dtype": kind, "shape": shape, "data_offsets": [start, len(file.data)]}
    _compact(file)


def widen(file: File, random: Random) -> None:
    """Another rank of a module, honestly, which can be far above what its sizes allow."""
    entries = dict(file.entries)
    pairs = [(name, name.replace("down", "up").replace("lora_A", "lora_B")) for name in entries]
    pairs = [pair for pair in pairs if pair[1] in entries and pair[0] != pair[1]]
    if not pairs or any(not isinstance(entries[name].get("shape"), list) for name in pairs[0]):
        return
    down, up = random.choice(pairs)
    rank = random.choice([1, 2, 7, 40, 3000, 40_000])
    shapes = [rank, *entries[down]["shape"][1:]], [*entries[up]["shape"][:1], rank, *entries[up]["shape"][2:]]
    if rank > 40:
        shapes = [rank, 1], [1, rank]
    for name, shape in zip((down, up), shapes, strict=True):
        if all(isinstance(size, int) and 0 <= size <= 40_000 for size in shape) and math.prod(shape) <= 200_000:
            start = len(file.data)
            file.data += struct.pack("<e", random.choice([0.01, 1.0])) * math.prod(shape)
            i = [name for name, _ in file.entries].index(name)
            file.entries[i] = name, {"dtype": "F16", "shape": shape, "data_offsets": [start, len(file.data)]}
    _compact(file)


def _compact(file: File) -> None:
    """The data of the entries alone, one after the other, as the format wants it; lies stay as they are."""
    data = bytearray()
    for i, (name, entry) in enumerate(file.entries):
        try:
            start, end = entry["data_offsets"]
            piece = file.data[start:end] if 0 <= start <= end <= len(file.data) else b""
        except (TypeError, ValueError, KeyError):
            continue
        file.entries[i] = name, {**entry, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    file.data = data


def poison(file: File, random: Random) -> None:
    """NaN, infinity and extremes among the values of a float32 tensor."""
    i, name, entry = _entry(file, random)
    start, end = entry["data_offsets"] if entry.get("dtype") == "F32" else (0, 0)
    if isinstance(start, int) and isinstance(end, int) and 0 <= start < end - 3 and end <= len(file.data):
        for _ in range(random.randint(1, 3)):
            place = random.randrange(start, end - 3, 4)
            file.data[place : place + 4] = struct.pack("<f", random.choice(NUMBERS))


def adapter_text(random: Random) -> str:
    names = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "init_lora_weights", "bias")
    config = {name: random.choice([*VALUES, 2, 4]) for name in random.sample(names, random.randint(1, 4))}
    if random.random() < 0.5:
        pattern = random.choice(["alpha_pattern", "rank_pattern"])
        config[pattern] = {random.choice(PATTERNS): random.choice([*VALUES, 2])}
    text = json.dumps(config)
    return random.choice([text, text, json.dumps({"unet": config}), DEEP, "{", "null", "[1]"])


def boast(file: File, random: Random) -> None:
    """Metadata that is hostile, or no text."""
    parent = {"name": "a", "file": "a", "sha256": "0", "weight": random.choice(VALUES)}
    parents = random.choice([[parent], [{}], parent, [parent] * 1000, [[parent]], random.choice(VALUES)])
    key, value = random.choice([
        ("lora_adapter_metadata", adapter_text(random)), ("lora_adapter_metadata", adapter_text(random)),
        ("lcm_lora.parents", json.dumps(parents)), ("lcm_lora.parents", DEEP),
        ("lcm_lora.expression", random.choice(["(" * 5000, "<b>x</b>", "a" * 100_000, "", '"', "1*1*1"])),
        ("modelspec.title", random.choice(NAMES)), (random.choice(NAMES), "x"), ("ss_network_dim", "9" * 400),
        ("modelspec.title", random.choice(VALUES)),
    ])  # fmt: skip
    file.metadata[key] = value


def beside(file: File, random: Random) -> None:
    """PEFT's config, and with it PEFT's own file name."""
    file.config = adapter_text(random)


TENSORS = [rename, rename, drop, repeat, lie, remake, remake, widen, widen, poison, boast, boast, beside]


def damaged(seed: Seed, random: Random) -> File:
    """A file with one to three things wrong."""
    file = opened(seed)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        if random.random() < 0.25:
            file.after.append(random.choice(BYTES))
        else:
            with suppress(TypeError, ValueError, KeyError):  # an entry that is damaged already is left so
                random.choice(TENSORS)(file, random)
    return file
