"""Files of others, checked before they are read; safetensors, written whole or not at all; the names of new files."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .atomic import Write, write_numbered, write_whole
from .text import quoted, shortened

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
LONGEST_TEXT = 64 * 2**20  # bytes
LONGEST_HEADER = 100_000_000  # bytes, the format's
LONGEST_PART, LONGEST_NAME = 255, 1000  # bytes; of a file or folder, and with the folders before it

METADATA = "__metadata__"
Entry = dict[str, Any]
CODES = {
    getattr(torch, name): code
    for name, code in {
        "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64", "bool": "BOOL",
        "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
        "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
        "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    }.items()
    if hasattr(torch, name)
}  # fmt: skip
DTYPES = {code: dtype for dtype, code in CODES.items()}
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')
_DEVICES = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\..*)?", re.IGNORECASE)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file opened for reading, which never waits.

    Raises FileNotFoundError, and ValueError for a folder, a pipe, a socket or a device, links to them too.
    """
    path = Path(path)
    _check_regular(path, path.stat().st_mode)
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
        yield file


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise ValueError(f"{shortened(path)} is {kind}, and only files are read; give the path of a file")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8; ValueError for another encoding, over 64 MiB, and as `open_regular` raises it."""
    with open_regular(path) as file:
        content = file.read(LONGEST_TEXT + 1)
    if len(content) > LONGEST_TEXT:
        raise ValueError(f"{shortened(path)} is longer than {LONGEST_TEXT} bytes of text; give a smaller file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shortened(path)} is no text in UTF-8 (byte {error.start} is {content[error.start]}); save it as UTF-8"
        ) from error


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[safe_open]:
    """A safetensors file opened for lazy reading on the CPU.

    Raises FileNotFoundError, and ValueError for a pickle (it could run code), a truncated or any other file, and what
    `open_regular` refuses.
    """
    path = Path(path)
    with open_regular(path) as file:
        start = file.read(9)
    if start[8:9] != b"{":
        if path.suffix.lower() in PICKLE_SUFFIXES or start.startswith((b"PK\x03\x04", b"\x80")):
            raise ValueError(
                f"{path} is a pickle, which can run code when it is opened; only safetensors is read. "
                "Get the .safetensors file, or convert it where you trust its author"
            )
        raise ValueError(f"{path} is not a safetensors file (it begins with {start!r}); download or copy it again")
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged ({shortened(error)}); "
            "download or copy it again"
        ) from error


def read_lora(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads (state dict on the CPU, metadata) of a safetensors file, PEFT's adapter_config included.

    Errors are those of `open_safetensors`.
    """
    with open_safetensors(path) as file:
        state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    return state_dict, with_adapter_config(path, metadata)


def with_adapter_config(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """A file's metadata, with PEFT's config: for its `adapter_model.safetensors`, which lacks alpha, that of the
    `adapter_config.json` beside it, as `lora_adapter_metadata`, where diffusers keeps it.
    """
    path, found = Path(path), dict(metadata)
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.exists():
        found.setdefault("lora_adapter_metadata", read_text(config))
    return found


def write_lora(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    replace: bool = True,
) -> None:
    """Writes a safetensors file, which appears at `path` whole: on any error an older file there is untouched.

    Raises ValueError for another suffix than .safetensors and for metadata that is not text, FileNotFoundError for a
    missing folder, FileExistsError for a file at `path` without `replace`, OSError for a full disk.
    """
    write_whole(check_new_file(path), _safetensors(state_dict, metadata), replace)


def check_new_file(path: str | os.PathLike[str]) -> Path:
    """The path; errors are those of `write_lora` for a suffix or a folder."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path} has suffix {path.suffix!r}; a LoRA is written as .safetensors only")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    return path


def write_new(
    folder: str | os.PathLike[str],
    stem: str,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes a safetensors file `<stem>_00001_.safetensors` with the next free number, and returns its path.

    No file is replaced, also where several processes save under one stem at once. Errors are those of `write_lora`.
    """
    return write_numbered(Path(folder), stem, ".safetensors", _safetensors(state_dict, metadata))


def _safetensors(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Write:
    """What writes the tensors to an open file.

    The package's own writer can't be used: it goes through a file of a random name, which stays if the process is
    killed and which nobody knows to be ours.
    """
    entries: dict[str, Entry] = {}
    tensors = sorted(state_dict.items(), key=lambda item: (-item[1].element_size(), item[0]))  # aligned
    end = 0
    for key, tensor in tensors:
        entries[key] = entry_of(key, tensor, end)
        end += tensor.nbytes
    text = safetensors_header(entries, metadata)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in tensors:
            file.write(bytes_of(tensor))

    return write


def entry_of(key: str, tensor: Tensor, begin: int) -> Entry:
    """What a header says of a tensor that begins at this byte of the tensors' part."""
    if tensor.dtype not in CODES:
        raise ValueError(f"safetensors has no place for {quoted(key)} of {tensor.dtype}; rename or convert it")
    return {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.nbytes]}


def bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def safetensors_header(entries: Mapping[str, Entry], metadata: Mapping[str, str] | None) -> bytes:
    """The header of a file, with spaces to a multiple of 8 bytes.

    Raises ValueError for metadata that is not text, a text that is none, and a header beyond the format's limit.
    """
    metadata = {"format": "pt", **(metadata or {})}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(
                f"metadata {quoted(key)} is {quoted(value)}; safetensors holds text only, use str() on both"
            )
    if METADATA in entries:
        raise ValueError(f"safetensors has no place for {quoted(METADATA)} as a tensor; rename it")
    try:
        text = json.dumps({METADATA: metadata, **entries}, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        found = quoted(error.object[error.start])
        raise ValueError(f"{found} in a tensor's name or the metadata is no character; leave it out") from error
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"names and metadata have {len(text)} bytes, of {LONGEST_HEADER}; shorten the metadata")
    return text


def path_below(folder: str | os.PathLike[str], name: str) -> Path:
    """`name` below `folder`, subfolders allowed, for a file that a text names.

    Raises ValueError for a name that is empty, absolute, on Windows too, has `..`, or leaves the folder through a
    symbolic link.
    """
    root = Path(folder).resolve()
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    outside = windows.anchor or posix.anchor or ".." in windows.parts
    path = root / Path(*windows.parts)
    try:
        inside = not outside and path != root and Path(os.path.realpath(path)).is_relative_to(root)
    except ValueError:  # a character that no name has
        inside = False
    if not inside or "\0" in name:
        raise ValueError(
            f"{quoted(name)} is not a file name below {root}; give a relative one such as 'loras/mix.safetensors', "
            "without '..' or links that lead elsewhere"
        )
    return path


def output_path(folder: str | os.PathLike[str], name: str, suffix: str = "") -> Path:
    """`name` + `suffix` below `folder`, for a file to write that a user names; `name` alone must be one already.

    Raises ValueError as `path_below` does, and for a file or folder that a system would not take or would take as
    another: with `< > : " | ? *` or control characters, with a dot or space at its end, of Windows' devices (CON, NUL),
    and longer than 255 bytes, or 1000 with its folders. These rules hold on every system, so a name that one takes
    another takes too.
    """
    path_below(folder, name)
    whole = name + suffix
    parts = PureWindowsPath(whole).parts
    length, *lengths = (len(text.encode(errors="surrogatepass")) for text in (whole, *parts))
    if length > LONGEST_NAME or max(lengths) > LONGEST_PART:
        raise ValueError(
            f"{quoted(name)} is too long for a file name ({length} bytes); give one of up to "
            f"{LONGEST_PART - len(suffix)} bytes, or {LONGEST_NAME - len(suffix)} with its folders"
        )
    for part in parts:
        if found := _FORBIDDEN.search(part):
            raise ValueError(f"{quoted(name)} has {found[0]!r}, which file names can't have; leave it out")
        if _DEVICES.fullmatch(part) or part[-1] in ". ":
            reason = "is a device of Windows" if part[-1] not in ". " else "ends in a dot or a space"
            raise ValueError(f"{quoted(part)} in {quoted(name)} {reason}; choose another name")
    return path_below(folder, whole)
