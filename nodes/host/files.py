"""The host's model files: their names, their places, and when they change."""

import os
from collections.abc import Iterable

import folder_paths

from ...lcm_core.text import quoted


def full_lcm_files() -> list[str]:
    """Names in the checkpoints and diffusion_models folders that a guidance projection can be read from."""
    names = folder_paths.get_filename_list("checkpoints") + folder_paths.get_filename_list("diffusion_models")
    return [name for name in dict.fromkeys(names) if name.endswith(".safetensors")]


def checkpoint_path(name: str) -> str:
    """A file of the checkpoints or diffusion_models folders."""
    return model_path(name, "checkpoints", "diffusion_models")


def model_path(name: str, *folders: str) -> str:
    """A file of the host's folders of these kinds, the first that has it.

    FileNotFoundError without one; it quotes the name so that the host's log, which a stray character stops, takes it.
    """
    for folder in folders:
        if path := folder_paths.get_full_path(folder, name):
            return path
    there = " and ".join(f"models/{folder}" for folder in folders)
    raise FileNotFoundError(f"there is no file {quoted(name)} in {there}; choose one that is there")


def stamp(paths: Iterable[str]) -> str:
    """A text that changes when one of these files does."""
    return " ".join(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path in paths for stat in [os.stat(path)])
