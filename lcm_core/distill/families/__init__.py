"""The flow models of diffusers: a module each, with its FAMILY; FAMILIES has them by their pipelines' names."""

import pkgutil
from importlib import import_module

from .family import Family

FAMILIES: dict[str, Family] = {
    family.pipeline: family
    for name in (module.name for module in pkgutil.iter_modules(__path__))
    if (family := getattr(import_module(f".{name}", __name__), "FAMILY", None))
}

__all__ = ["FAMILIES", "Family"]
