"""LoRA files in the host's folders: found, loaded as LORA_MODEL, saved."""

import difflib
import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import folder_paths
from torch import Tensor

from ...lcm_core import atomic
from ...lcm_core.accelerators import SAMPLING, Recognition, recognize
from ...lcm_core.files import output_path, write_new
from ...lcm_core.lora.file import LoRAFile, named
from ...lcm_core.lora.record import PARENTS, file_record
from ...lcm_core.lora.sampling import recipe_of, recorded
from ...lcm_core.text import listed, quoted
from .files import model_path
from .lora_model import LoRATensors, to_vector
from .recipes import recipes


def lora_files() -> list[str]:
    return folder_paths.get_filename_list("loras")


def load_lora(name: str) -> LoRATensors:
    """A LORA_MODEL of the host's loras folders with the file's own adapters, vectors or not; errors name the file."""
    path = lora_path(name)
    file = LoRAFile.read(path)
    with named(path):
        return LoRATensors(file, file_record(path), name)


def load_vector(name: str) -> LoRATensors:
    """The same of a file that is a vector, which says how it is sampled if it is an accelerator.

    What reading it had to assume is in the log.
    """
    lora = load_lora(name)
    lora = lora.saying(recorded(recognition(lora)))
    with named(lora_path(name)):
        to_vector(lora)
    for note in lora.notes:
        logging.warning("LCM-LoRA: %s: %s", name, note)
    return lora


def recognition(lora: Mapping[str, Tensor]) -> Recognition:
    """How a LORA_MODEL is sampled: as all of a file says, unless its vector says another recipe, which was chosen.

    What was made in a graph is sampled as its metadata says.
    """
    metadata = getattr(lora, "metadata", {})
    if isinstance(lora, LoRATensors) and lora.name is not None:
        found = recipe_of(lora.name, lora.file, sha256=sha256_of(lora), recipes=recipes())
        if metadata.get(SAMPLING) in (None, recorded(found).get(SAMPLING)):
            return found
    return recognize("", metadata, recipes=recipes())


def sha256_of(lora: LoRATensors) -> str:
    """The SHA-256 of the file that a LORA_MODEL was loaded from."""
    (parent,) = json.loads(lora.record[PARENTS])
    return parent["sha256"]


def save_new(prefix: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """The path of a new file in the output folder, numbered so that nothing is overwritten; its folder is made.

    ValueError for a prefix that leads out of the output folder or is no file name on every system.
    """
    output = folder_paths.get_output_directory()
    prefix = re.sub("%date:([^%]+)%", lambda match: dated(match[1], time.localtime()), prefix)
    output_path(output, prefix, "_00001_.safetensors")
    folder, name, *_ = folder_paths.get_save_image_path(prefix, output)
    return write_new(folder, name, tensors, metadata)


def dated(text: str, now: time.struct_time) -> str:
    """A pattern such as yyyy-MM-dd as ComfyUI's front end fills it in for its own saving nodes alone."""
    numbers = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def written(match: re.Match) -> str:
        letters = match[0]
        if letters[0] == "y":
            return f"{now.tm_year:04}"[-len(letters) :]
        return str(numbers[letters[0]]).zfill(len(letters))

    return re.sub("yyyy|yy|dd?|MM?|hh?|mm?|ss?", written, text)


def remove_leftovers() -> None:
    """Deletes what killed processes left half-written where the nodes save by default."""
    for folder in ("loras", "lcm_training"):
        atomic.remove_leftovers(Path(folder_paths.get_output_directory()) / folder)


def find_lora(name: str) -> str:
    """The file of the loras folders that a user means by its path or its bare name, `.safetensors` left out or not.

    LookupError for a name that fits no file, ValueError for a bare name that fits several.
    """
    wanted = PurePosixPath(name.replace("\\", "/"))
    paths = {file: PurePosixPath(file.replace("\\", "/")) for file in lora_files()}
    whole = [file for file, path in paths.items() if wanted in (path, _without_suffix(path))]
    bare = [file for file, path in paths.items() if str(wanted) in (path.name, _without_suffix(path).name)]
    fitting = whole or bare
    if len(fitting) > 1:
        raise ValueError(f"the name {quoted(name)} fits {listed(fitting, 8)} of models/loras; write one of these paths")
    if not fitting:
        stems = {_without_suffix(path).name.lower(): file for file, path in paths.items()}
        close = difflib.get_close_matches(_without_suffix(wanted).name.lower(), stems)
        similar = ", ".join(stems[stem] for stem in close)
        raise LookupError(f"models/loras has {similar}" if similar else "models/loras has no name like it")
    return fitting[0]


def _without_suffix(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix("") if path.suffix == ".safetensors" else path


def lora_path(name: str) -> str:
    """A file of the loras folders."""
    return model_path(name, "loras")
