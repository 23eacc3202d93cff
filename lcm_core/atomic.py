"""Files that are written whole or not at all: first as a part beside them, which then takes their name.

A part is `.lcm-lora-<16 hexadecimal digits>.part`. Its writer holds a lock on it, which tells the part of a killed
process from one that is being written: the next write into the folder deletes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:
    fcntl = None  # type: ignore[assignment]  # Windows

Write = Callable[[BinaryIO], None]

PART = re.compile(r"\.lcm-lora-[0-9a-f]{16}\.part")
LEFT_AFTER = 24 * 3600  # seconds; how old a part is that nobody writes any more, where files have no locks
SYNCED_AT_ONCE = 2**26  # bytes
WITHOUT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def write_whole(path: Path, write: Write, replace: bool = True) -> None:
    """What `write` writes becomes the file `path`, on the disk when this returns; on any error nothing is changed.

    It waits for the disk before the file takes its name: else a power cut soon after could leave the name with an empty
    file, and the old one gone. A new file has the mode that the umask gives, a replaced one keeps its own. Raises
    FileExistsError without `replace` if there is a file, even one made meanwhile, and OSError with the path for what
    the system refuses.
    """
    with _naming(path):
        remove_leftovers(path.parent)
        with _part(path.parent) as (part, file):
            write(file)
            if replace and path.exists() and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            _finish(file)
            _place(part, path, replace)
        _sync_folder(path.parent)


def write_numbered(folder: Path, stem: str, suffix: str, write: Write) -> Path:
    """The new file `<folder>/<stem>_00001_<suffix>`, or the number after the highest there: no file is ever replaced.

    Processes that do this at once get a number each. Errors are those of `write_whole`.
    """
    with _naming(folder / f"{stem}_00001_{suffix}"):
        remove_leftovers(folder)
        with _part(folder) as (part, file):
            write(file)
            _finish(file)
            number = 1 + max(_numbers(folder, stem), default=0)
            while True:
                path = folder / f"{stem}_{number:05}_{suffix}"
                try:
                    _place(part, path, replace=False)
                    break
                except FileExistsError:
                    number += 1
        _sync_folder(folder)
    return path


@contextmanager
def syncing(file: BinaryIO) -> Iterator[Callable[[], None]]:
    """A function to call after each write: what is written of a long file goes onto the disk while more is made, so
    that the end has less to wait for. Raises OSError at the end for what the disk did not take."""
    with ThreadPoolExecutor(1) as thread:
        begun: list[Future[None]] = []
        position = 0

        def sync() -> None:
            nonlocal position
            if file.tell() - position >= SYNCED_AT_ONCE and all(each.done() for each in begun):
                file.flush()
                begun.append(thread.submit(_sync, file))
                position = file.tell()

        yield sync
        for each in begun:  # the system tells of what it could not write once, to the first that asks
            each.result()


def remove_leftovers(folder: Path) -> int:
    """Deletes the parts in a folder that no process writes any more, and returns how many; never raises OSError."""
    removed = 0
    with suppress(OSError):
        for name in os.listdir(folder):
            if PART.fullmatch(name):
                with suppress(OSError):  # another user's, or one that is deleted by another process meanwhile
                    removed += _remove_left(folder / name)
    return removed


def _remove_left(part: Path) -> bool:
    if fcntl is not None:
        handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise
        finally:
            os.close(handle)
    if time.time() - part.stat().st_mtime < LEFT_AFTER:
        return False
    part.unlink()
    return True


@contextmanager
def _part(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new locked part, open for writing; it is deleted at the end unless it was renamed."""
    while True:
        part = folder / f".lcm-lora-{secrets.token_hex(8)}.part"
        file = part.open("xb")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():
            break
        file.close()  # deleted as a leftover before it was locked
    try:
        yield part, file
    finally:
        with suppress(OSError):  # what is buffered of a failed write
            file.close()
        part.unlink(missing_ok=True)


def _finish(file: BinaryIO) -> None:
    file.flush()
    _sync(file)
    if fcntl is None:
        file.close()  # Windows renames no open file


def _sync(file: BinaryIO) -> None:
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in WITHOUT_SYNC:
            raise


def _place(part: Path, path: Path, replace: bool) -> None:
    if replace:
        os.replace(part, path)
    elif os.name == "nt":
        os.rename(part, path)  # there it replaces nothing
    else:
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            path.open("xb").close()
            try:
                os.replace(part, path)
            except BaseException:
                path.unlink()
                raise


def _numbers(folder: Path, stem: str) -> Iterator[int]:
    """The numbers that files of a folder have after `<stem>_`, as ComfyUI counts them: whatever their suffix."""
    numbered = re.compile(re.escape(os.path.normcase(stem)) + "_([0-9]+)(?:_|$)")
    for name in os.listdir(folder):
        if match := numbered.match(os.path.normcase(name)):
            yield int(match[1])


def _sync_folder(folder: Path) -> None:
    """Makes a new name last through a power cut, where the system can."""
    if os.name != "nt":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """OSError names the file that is written, not the part."""
    try:
        yield
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, "is there already; choose another name", str(path)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "make room there or choose another folder"
        if isinstance(error, PermissionError):
            remedy = "choose a folder that you may write to"
        raise OSError(error.errno or errno.EIO, f"can't be written: {reason}; {remedy}", str(path)) from error
