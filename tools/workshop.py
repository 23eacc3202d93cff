"""What the parts of tools/make.py are made of and in: products, and the ComfyUI that some of them need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools.comfy_client import Client
from tools.host_process import HostProcess
from tools.inprocess import ROOT, Host, load_host


@dataclass(frozen=True)
class Product:
    """A file that a part makes; `content` makes what is in it."""

    path: Path
    content: Callable[[], bytes]

    @classmethod
    def text(cls, path: Path, content: Callable[[], str]) -> Product:
        return cls(path, lambda: content().encode())


class Workshop:
    """ComfyUI for the parts that need it: in this process, as a server, each made when it is first asked for.

    lay_out: makes what is missing, and returns the folders of ComfyUI and of its models.
    """

    def __init__(self, lay_out: Callable[[], tuple[Path, Path]]) -> None:
        self._lay_out, self._open = lay_out, ExitStack()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    @cached_property
    def folders(self) -> tuple[Path, Path]:
        return self._lay_out()

    @cached_property
    def host(self) -> Host:
        return load_host(*self.folders)

    @cached_property
    def client(self) -> Client:
        comfyui, base = self.folders
        log = base.parent / "logs" / "make.log"
        process = self._open.enter_context(HostProcess(comfyui, sys.executable, base, log, ["--cpu"]))
        process.wait_ready()
        return Client(process.url)


def shown(path: Path) -> str:
    """A path as it is written in this repository."""
    return path.relative_to(ROOT).as_posix()
