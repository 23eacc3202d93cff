"""A ComfyUI server as a child process: started on a free loopback port, always stopped. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class HostError(RuntimeError):
    """The server did not start, or died; the message ends with its log's last lines."""


def log_tail(log: Path, lines: int = 20, width: int = 240) -> str:
    """The last lines of a log, indented and cut to `width`; of a progress bar its last state."""
    text = log.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n").rstrip() if log.exists() else ""
    last = [line.rpartition("\r")[2] for line in text.split("\n")[-lines:]]
    return "\n".join(f"    {line[:width]}" for line in last) if text else "    (the log is empty)"


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """This process's environment without the variables that would let another Python's packages in."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"PYTHONNOUSERSITE": "1"}


class HostProcess:
    """One server in a process group of its own. `with HostProcess(…) as host: host.wait_ready(); host.url`.

    Leaving the block stops the whole group, also on an error, Ctrl-C, SIGTERM or SIGHUP (SystemExit inside the block).
    """

    def __init__(
        self, comfyui: Path, python: str, base: Path, log: Path, arguments: Sequence[str] = (), port: int | None = None
    ) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        database = f"sqlite:///{base.as_posix()}/user/comfyui.db"
        self.command = [python, str(comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
        self.command += ["--base-directory", str(base), "--database-url", database]
        self.command += ["--disable-api-nodes", "--disable-auto-launch", *arguments]

    def __enter__(self) -> HostProcess:
        self._handlers = {number: signal.signal(number, _exit_on_signal) for number in STOP_SIGNALS}
        group = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            if sys.platform == "win32"
            else {"start_new_session": True}
        )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
                **group,
            )
        return self

    def __exit__(self, *exc: object) -> None:
        self._signal_group(force=False)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal_group(force=True)
            self.process.wait(10)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _signal_group(self, force: bool) -> None:
        if sys.platform == "win32":
            if self.process.poll() is None:
                subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.process.pid)], capture_output=True)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL if force else signal.SIGTERM)

    def wait_ready(self, timeout: float = 300.0) -> dict:
        """Wait until /system_stats answers and return it; HostError if the process ends or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.check_alive()
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as answer,
            ):
                return json.load(answer)
            time.sleep(0.1)
        raise HostError(self.report(f"ComfyUI did not answer on {self.url} within {timeout:.0f} s"))

    def check_alive(self) -> None:
        """HostError with the log's last lines if the process has ended."""
        if self.process.poll() is not None:
            raise HostError(self.report(f"ComfyUI ended with exit code {self.process.returncode}"))

    def report(self, what: str) -> str:
        """`what`, then the log's path and last lines."""
        return f"{what}. The last lines of {self.log}:\n{log_tail(self.log)}"


def _exit_on_signal(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def device_arguments(python: str) -> list[str]:
    """`--cpu` unless that Python's torch finds an accelerator; ComfyUI refuses to start on a CPU without it."""
    probe = (
        "import torch\n"
        "found = [getattr(torch, name, None) for name in ('cuda', 'mps', 'xpu')]\n"
        "raise SystemExit(0 if any(d and d.is_available() for d in found) else 3)"
    )
    return ["--cpu"] if subprocess.run([python, "-c", probe], capture_output=True).returncode else []
