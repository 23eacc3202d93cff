"""What a running node tells: progress, texts and warnings; and the host's word to stop.

What a node of ours tells is in its outputs: the job's history has it, and web/js/text.js draws it, while the node runs
and for as long as the front end keeps outputs. In a node of the host it is progress text, which newer front ends drop
when the job ends.
"""

import logging
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps

import comfy.model_management
import comfy.utils
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context


def progress() -> Callable[[int, int], None]:
    """report(done, total) for long work: moves the node's progress bar, and raises when the user interrupts."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report


@dataclass(frozen=True)
class Said:
    """What a node says: lines of its report, and why its result will look wrong."""

    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __add__(self, other: "Said") -> "Said":
        return Said(self.lines + other.lines, self.warnings + other.warnings)

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"⚠ {text}" for text in self.warnings)])

    def outputs(self) -> dict[str, list[str]]:
        """As a node's outputs hold it: the texts, warnings first, and at the same places their levels."""
        levels = ["warning"] * len(self.warnings) + ["info"] * len(self.lines)
        return {"text": [*self.warnings, *self.lines], "levels": levels}


EVENT = "lcm_lora.told"
HEARD: ContextVar[Said | None] = ContextVar("what the running node of ours has said", default=None)


def heard(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose outputs now hold all that it told; if nothing, that too, in place of what an older run told."""
    execute = vars(node)["execute"].__func__

    @wraps(execute)
    def execute_and_keep(cls, **given):
        token = HEARD.set(Said())
        try:
            output = execute(cls, **given)
            output.ui = HEARD.get().outputs()
        finally:
            HEARD.reset(token)
        return output

    node.execute = classmethod(execute_and_keep)
    node.HAS_INTERMEDIATE_OUTPUT = True  # newer hosts then have it in the history of a job that takes the node cached
    return node


def tell(said: Said) -> None:
    """Shows it in the node that is running; the warnings are in the log too."""
    for text in said.warnings:
        logging.warning("LCM-LoRA: %s", text)
    if (before := HEARD.get()) is not None:
        HEARD.set(said := before + said)
    if (context := get_executing_context()) is None:
        return
    from server import PromptServer

    server = PromptServer.instance
    if before is None:
        server.send_progress_text(inert(str(said)), context.node_id)
    elif server.client_id is not None:
        server.send_sync(EVENT, {"node": context.node_id, **said.outputs()}, server.client_id)


def inert(text: str) -> str:
    """A text as it reads, without what a front end that inserts it as HTML would act on.

    Front ends up to 1.35.9 and some after them do, and they make a link of `[[label|address]]`, of which `__LNK0__` is
    their own mark; newer ones show the text as it is. So `<` becomes ‹, which reads alike in both, and spaces part the
    other two.
    """
    return re.sub(r"\[(?=\[)", "[ ", text.replace("<", "‹")).replace("__LNK", "__ LNK")


def warn(text: str) -> None:
    """Says in the node that is running, and in the log, that its result will look wrong."""
    tell(Said(warnings=(text,)))


def note(text: str) -> None:
    """Says in the node that is running, and in the log, what it did beside what it was asked."""
    logging.info("LCM-LoRA: %s", text)
    tell(Said((text,)))
