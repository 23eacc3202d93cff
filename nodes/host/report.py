"""What a running node tells: progress, texts and warnings; and the host's word to stop."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context


def progress() -> Callable[[int, int], None]:
    """report(done, total) for long work: moves the node's progress bar, and raises when the user interrupts."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report


def show_text(text: str) -> None:
    """Shows a text in the node that is running, where there is a front end to show it."""
    if (context := get_executing_context()) is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(inert(text), context.node_id)


def inert(text: str) -> str:
    """A text as it reads, without what a front end that inserts it as HTML would act on.

    Front ends up to 1.35.9 and some after them do, and they make a link of `[[label|address]]`, of which `__LNK0__` is
    their own mark; newer ones show the text as it is. So `<` becomes ‹, which reads alike in both, and spaces part the
    other two.
    """
    return re.sub(r"\[(?=\[)", "[ ", text.replace("<", "‹")).replace("__LNK", "__ LNK")


@dataclass(frozen=True)
class Said:
    """What a node says: lines of its report, and why its result will look wrong."""

    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __add__(self, other: "Said") -> "Said":
        return Said(self.lines + other.lines, self.warnings + other.warnings)

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"⚠ {text}" for text in self.warnings)])


def tell(said: Said) -> None:
    """Shows it in the node that is running; the warnings are in the log too."""
    for text in said.warnings:
        logging.warning("LCM-LoRA: %s", text)
    show_text(str(said))


def warn(text: str) -> None:
    """Says in the node that is running, and in the log, that its result will look wrong."""
    tell(Said(warnings=(text,)))


def note(text: str) -> None:
    """Says in the node that is running, and in the log, what it did beside what it was asked."""
    logging.info("LCM-LoRA: %s", text)
    show_text(text)
