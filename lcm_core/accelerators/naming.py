"""Names of files and of models as words, and the base model that a text speaks of."""

from __future__ import annotations

import re

# Label -> what it is called, in the words of `plain`. A later one is looked for in what earlier ones leave.
BASES: dict[str, str] = {
    "SSD-1B": r"ssd ?1b",
    "SDXL": r"sd ?xl|stable diffusion xl",
    "SD3": r"sd ?3(?: ?5)?\b|stable diffusion (?:v ?)?3",
    "SD2.1": r"sd ?v?2(?: ?1)?\b|stable diffusion (?:v ?)?2",
    "SD1.5": r"sd ?v?1(?: ?[45x])?\b|stable diffusion (?:v ?)?1|sd ?15",
    "PixArt": r"pixart",
    "Flux.2": r"flux ?2\b",
    "Flux.1": r"flux",
    "Qwen-Image": r"qwen",
    "Wan 2.2": r"wan(?: video)? ?2 ?2",
    "Wan 2.1": r"wan(?: video)? ?2 ?1",
    "LTX-2": r"ltx ?v? ?2\b",
}
# A LoRA for the one is loaded on the other as well.
ALSO_FOR = {"Wan 2.1": "Wan 2.2"}
# Names that say nothing of a file: hubs give them to all, and tell the files apart by the folder.
_GENERIC = re.compile(
    r"(?:pytorch lora weights|diffusion pytorch model|adapter model|lora|model|(?:high|low) noise model)"
)
_SUFFIX = re.compile(r"\.(?:safetensors|sft|gguf|pt|pth|bin|ckpt)$", re.IGNORECASE)


def plain(text: str) -> str:
    """A text in lower case, its `_`, `-`, `.` and spaces as one space each: what two spellings of a name share."""
    return re.sub(r"[\s_\-.]+", " ", text.lower()).strip()


def file_words(path: str) -> str:
    """A file's name in `plain` words, without its suffix; after two folders' where the name itself says nothing."""
    *folders, name = re.split(r"[/\\]", path.strip("/\\"))
    words = plain(_SUFFIX.sub("", name))
    return plain(" ".join([*folders[-2:], words])) if _GENERIC.fullmatch(words) else words


def bases_in(text: str) -> tuple[str, ...]:
    """The base models, labels of `BASES`, that a text names; none if it names none."""
    left, found = plain(text), []
    for label, pattern in BASES.items():
        left, count = re.subn(rf"(?<![0-9])(?:{pattern})", " ", left)
        if count:
            found.append(label)
    return tuple(found)
