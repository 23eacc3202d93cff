"""What the host knows of acceleration LoRAs: the recipes, the base of a MODEL, and the recipe that a MODEL carries."""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import folder_paths

from ...lcm_core.accelerators import Recipe, load_recipes
from ...lcm_core.accelerators.recipe import Expert

USER_FILE = "lcm_lora_recipes.json"  # in the host's user folder
ATTACHMENT = "lcm_lora_accelerators"
# By the host's class of a model's configuration: the bases of the recipes that it may be. Wan 2.2's two experts have
# the configuration of Wan 2.1.
WAN = "Wan 2.1 or Wan 2.2"
BASES = {
    "SD15": "SD1.5", "SD15_instructpix2pix": "SD1.5",
    "SD20": "SD2.1", "SD21UnclipL": "SD2.1", "SD21UnclipH": "SD2.1",
    "SDXL": "SDXL", "SDXL_instructpix2pix": "SDXL", "SSD1B": "SSD-1B",
    "SD3": "SD3", "PixArtAlpha": "PixArt", "PixArtSigma": "PixArt",
    "Flux": "Flux.1", "FluxInpaint": "Flux.1", "FluxSchnell": "Flux.1", "Flux2": "Flux.2",
    "QwenImage": "Qwen-Image",
    "WAN21_T2V": WAN, "WAN21_I2V": WAN, "WAN21_FunControl2V": WAN, "WAN21_Camera": WAN, "WAN21_Vace": WAN,
    "WAN21_HuMo": WAN, "WAN21_FlowRVS": WAN, "WAN21_SCAIL": WAN, "WAN21_SCAIL2": WAN, "WAN21_CausalAR_T2V": WAN,
    "WAN22_T2V": "Wan 2.2", "WAN22_Camera": "Wan 2.2", "WAN22_S2V": "Wan 2.2", "WAN22_Animate": "Wan 2.2",
    "LTXAV": "LTX-2",
}  # fmt: skip
EXPERT = re.compile(r"(high|low)[\s_\-.]?noise", re.IGNORECASE)


@dataclass(frozen=True)
class Accelerator:
    """An acceleration LoRA on a MODEL: its file's name and its recipe."""

    file: str
    recipe: Recipe


@lru_cache(maxsize=1)
def recipes() -> dict[str, Recipe]:
    """Name -> recipe: the package's and those of the user's file, read once; what is wrong with it is in the log."""
    path = Path(folder_paths.get_user_directory()) / USER_FILE
    try:
        found, faults = load_recipes(path)
    except FileNotFoundError:
        return load_recipes()[0]
    except (OSError, ValueError) as error:
        found, faults = load_recipes()[0], [f"{error}; none of its recipes is used"]
    for fault in faults:
        logging.warning("LCM-LoRA: %s", fault)
    return found


def choices() -> dict[str, Recipe]:
    """What a person reads -> recipe, in the table's order; two with one label have their names beside it."""
    table = recipes().values()
    labels = [recipe.label for recipe in table]
    return {r.label if labels.count(r.label) == 1 else f"{r.label} ({r.name})": r for r in table}


def base_of(model) -> str | None:
    """What base a MODEL is, as `recognize` takes it; None for one that no recipe is for."""
    return BASES.get(type(model.model.model_config).__name__)


def expert_of(model) -> Expert | None:
    """The half of a pair that a MODEL is by its file's name, on hosts that keep it; None where that says nothing."""
    _, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    paths = [argument for argument in arguments if isinstance(argument, str)]
    found = {match[1].lower() for path in paths for match in EXPERT.finditer(Path(path).name)}
    return found.pop() if len(found) == 1 else None  # type: ignore[return-value]


def accelerators_on(model) -> tuple[Accelerator, ...]:
    """The acceleration LoRAs that a MODEL's loaders put on it, in their order."""
    return model.get_attachment(ATTACHMENT) or ()


def recipe_on(model) -> Recipe | None:
    """The recipe that a MODEL is sampled by: that of the last acceleration LoRA on it."""
    found = accelerators_on(model)
    return found[-1].recipe if found else None


def with_accelerator(model, accelerator: Accelerator):
    """A clone of the MODEL that carries the LoRA's recipe, through further clones too."""
    model = model.clone()
    model.set_attachments(ATTACHMENT, (*accelerators_on(model), accelerator))
    return model
