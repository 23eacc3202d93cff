"""The objectives: every module here is one, registered by `@objective`; OBJECTIVES has them by name."""

import pkgutil
from importlib import import_module

from ..objective import OBJECTIVES

for _module in pkgutil.iter_modules(__path__):
    import_module(f".{_module.name}", __name__)

__all__ = ["OBJECTIVES"]
