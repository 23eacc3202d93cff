"""Errors as one line that says what to do, and warnings as lines of their own."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..text import shortened

PACKAGE = Path(__file__).parents[1]
MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
DEFECT = "this is a defect of lcm-lora, report this line"
REMEDIES = {
    errno.ENOENT: "correct the path",
    errno.EACCES: "choose a file and a folder that you may read and write",
    errno.EPERM: "choose a file and a folder that you may read and write",
    errno.EISDIR: "give the path of a file",
    errno.ENOTDIR: "correct the path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "correct the links",
    errno.ENOSPC: "make room on the disk",
}


def explained(error: BaseException) -> tuple[int, str]:
    """(exit code, the one line that is said) of whatever ended a command."""
    return (130, "interrupted") if isinstance(error, KeyboardInterrupt) else (1, " ".join(_reason(error).split()))


def _reason(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; run pip install 'lcm-lora[cli]'"
    if isinstance(error, OSError):
        reason = error.strerror or text
        if "; " not in reason:
            reason += f"; {REMEDIES.get(error.errno or 0, 'see to that and try again')}"
        return f"{error.filename}: {reason}" if error.filename else reason
    refused = isinstance(error, RuntimeError) and any(phrase in text.lower() for phrase in MEMORY)
    if refused or isinstance(error, MemoryError):
        return f"there is not enough memory ({shortened(text) or 'for this'}); close programs or use smaller files"
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8 ({shortened(text)}); save it as UTF-8"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; make it simpler"
    if type(error).__name__.endswith("LinAlgError"):
        return f"a decomposition has no result ({shortened(text)}); use weights or files of smaller values"
    if isinstance(error, (ValueError, FloatingPointError, ImportError)):
        return text
    return f"{type(error).__name__} at {_place(error)}: {shortened(text)}; {DEFECT}"


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "no place"


@contextmanager
def told_warnings(quiet: bool) -> Iterator[list[str]]:
    """The warnings of lcm_core, its log's and Python's, as a growing list; on stderr too unless quiet."""
    told: list[str] = []

    def tell(text: str) -> None:
        text = " ".join(text.split())
        if text not in told:
            told.append(text)
            if not quiet:
                print(f"lcm-lora: warning: {text}", file=sys.stderr)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage())

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
        if Path(filename).is_relative_to(PACKAGE):
            tell(str(message))
        else:
            shown(message, category, filename, *rest)  # type: ignore[arg-type]

    logger, handler = logging.getLogger(PACKAGE.name), Handler(logging.WARNING)
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", module=rf"{PACKAGE.name}\.")
            shown, warnings.showwarning = warnings.showwarning, show  # type: ignore[assignment]
            yield told
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
