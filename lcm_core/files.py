"""safetensors files, checked before they are read and written whole or not at all, and the names of new files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[safe_open]:
    """A safetensors file opened for lazy reading on the CPU.

    Raises FileNotFoundError, and ValueError for a pickle (it could run code), a truncated or any other file.
    """
    path = Path(path)
    with path.open("rb") as file:
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
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged ({error}); download or copy it again"
        ) from error


def read_lora(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads (state dict on the CPU, metadata) of a safetensors file; errors are those of `open_safetensors`.

    PEFT keeps the alpha of its `adapter_model.safetensors` in `adapter_config.json` beside it; that text is then added
    to the metadata as `lora_adapter_metadata`, where diffusers keeps it.
    """
    path = Path(path)
    with open_safetensors(path) as file:
        state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():
        metadata.setdefault("lora_adapter_metadata", config.read_text(encoding="utf-8"))
    return state_dict, metadata


def write_lora(
    path: str | os.PathLike[str], state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file beside `path`, then renames it: on any error an older file at `path` is untouched.

    Raises ValueError for another suffix than .safetensors and for metadata that is not text, FileNotFoundError for a
    missing folder, OSError for a full disk.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path} has suffix {path.suffix!r}; a LoRA is written as .safetensors only")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    metadata = {"format": "pt", **(metadata or {})}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata {key!r} is {value!r}; safetensors holds text only, use str() on both")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        save_file({key: t.detach().cpu().contiguous() for key, t in state_dict.items()}, part, metadata=metadata)
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def output_path(folder: str | os.PathLike[str], name: str) -> Path:
    """`name` below `folder`, subfolders allowed, for a file that a user names.

    Raises ValueError for a name that is empty, absolute, has `..`, or leaves the folder through a symbolic link. The
    rules of Windows hold everywhere, so a name that one system takes another takes too.
    """
    root = Path(folder).resolve()
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    outside = windows.anchor or posix.anchor or ".." in windows.parts
    path = root / Path(*windows.parts)
    if outside or "\0" in name or path == root or not path.resolve().is_relative_to(root):
        raise ValueError(
            f"{name!r} is not a file name below {root}; give a relative one such as 'loras/mix.safetensors', "
            "without '..' or links that lead elsewhere"
        )
    return path
