"""What a package names and imports when it is first used."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def imported(package: str, home: Mapping[str, str], name: str) -> Any:
    """For a package's `__getattr__`: `name` from its module, which `home` has. AttributeError for any other name."""
    if name not in home:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f".{home[name]}", package), name)
