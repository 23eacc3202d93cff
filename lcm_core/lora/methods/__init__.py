"""The combine methods: every module here is one, registered by `@method`; METHODS has them by name.

As in PEFT's `*_svd` combination types, weights multiply after pruning and election.
"""

import pkgutil
from importlib import import_module

from ..method import METHODS

for _module in pkgutil.iter_modules(__path__):
    import_module(f".{_module.name}", __name__)

__all__ = ["METHODS"]
