"""How a LoRA file is sampled: its recipe, which what is made of the file keeps."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..accelerators import SAMPLING, Recipe, Recognition, recognize, sampling_record
from ..accelerators.naming import bases_in
from ..accelerators.settings import lcm_recipe
from .architecture import architecture
from .file import LoRAFile
from .record import sha256_of
from .vector import LoRAVector


def recipe_of(
    name: str,
    file: LoRAFile,
    *,
    sha256: str | None = None,
    base: str | None = None,
    recipes: Mapping[str, Recipe] | None = None,
) -> Recognition:
    """`recognize` of a file that is read or scanned; its name with folders, as there."""
    ranks = {m.name: len(m.tensors["down"]) if "down" in m.tensors else None for m in file.modules}
    return recognize(name, file.metadata, sha256=sha256, modules=ranks, base=base, recipes=recipes)


def recipe_of_path(
    path: str | os.PathLike[str], file: LoRAFile, recipes: Mapping[str, Recipe] | None = None
) -> Recognition:
    """`recipe_of` of the file at `path`, which is read once for its SHA-256 unless its metadata stands alone."""
    sha256 = None if SAMPLING in file.metadata else sha256_of(path)
    return recipe_of(os.fspath(path), file, sha256=sha256, recipes=recipes)


def recorded(found: Recognition) -> dict[str, str]:
    """The entry that what is made of a file takes from it: nothing where no recipe, or only its modules, speak."""
    return sampling_record(found.recipe) if found.recipe and found.evidence != "modules" else {}


def distilled(vector: LoRAVector, original_steps: int, gamma: float = 1.0) -> LoRAVector:
    """A vector of consistency distillation, whose metadata says so: LCM-LoRA's recipe on its own grid, with its γ."""
    sizes = {f"{name}.weight": factors.shape for name, factors in vector.modules.items()}
    recipe = lcm_recipe(original_steps, bases_in(architecture(sizes, vector.metadata)), gamma)
    return LoRAVector(vector.modules, vector.diffs, {**vector.metadata, **sampling_record(recipe)}, vector.notes)
