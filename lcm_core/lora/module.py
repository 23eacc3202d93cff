"""One module of a LoRA file: its tensors by role, and its alpha by the file or the file's config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..text import listed, shortened
from .names import Spelling
from .peft_config import Config, alpha_of, uses_rslora


@dataclass(frozen=True)
class Module:
    """What a module's name stands for, role -> key in the file, role -> tensor, and the file's PEFT config, {} if it
    has none. Roles are those of `kinds`, and "alpha".
    """

    spelling: Spelling
    keys: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    config: Config

    @property
    def name(self) -> str:
        """The canonical name, of a fused weight the parts' names."""
        return self.spelling.name

    def need(self, *roles: str) -> list[Tensor]:
        for role in roles:
            if role not in self.tensors:
                raise ValueError(
                    f"{shortened(self.name)} has {listed(self.keys.values(), 9)} but no {role} factor; "
                    "the file is incomplete, get it again"
                )
        return [self.tensors[role] for role in roles]

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Module:
        """The module with these in place of its own."""
        return replace(self, tensors=tensors, keys={role: self.keys.get(role, role) for role in tensors})

    def shapes(self) -> Module:
        """The module with its factors on the meta device: shapes alone, and the alpha as it is."""
        return self.with_tensors(
            {role: tensor if role == "alpha" else tensor.to("meta") for role, tensor in self.tensors.items()}
        )

    def alpha(self, rank: int) -> float:
        """The alpha of alpha/rank: the file's, else by PEFT's config, else the rank."""
        stored = self.tensors.get("alpha")
        if stored is None:
            configured = alpha_of(self.spelling.dotted, self.config)
            alpha = float(rank) if configured is None else configured
            if configured is not None and uses_rslora(self.name, self.config):
                alpha *= math.sqrt(rank)
        elif stored.numel() != 1 or stored.is_complex():
            raise self.misfit()
        else:
            alpha = float(stored)
        if not math.isfinite(alpha):
            raise ValueError(
                f"alpha of {shortened(self.name)} is {alpha}; it must be a finite number, the rank {rank} if in doubt"
            )
        return alpha

    def scale(self, rank: int) -> float:
        """alpha/rank."""
        return self.alpha(rank) / rank

    def misfit(self) -> ValueError:
        shapes = (f"{shortened(key)} {tuple(self.tensors[role].shape)}" for role, key in self.keys.items())
        return ValueError(
            f"the factors of {shortened(self.name)} don't fit each other: {listed(shapes, 9)}; "
            "the file is damaged, get it again"
        )

    def mixed(self) -> ValueError:
        return ValueError(
            f"{shortened(self.name)} is adapted in more than one way ({listed(self.keys.values(), 9)}); "
            "save each in a file of its own"
        )

    def overflow(self) -> ValueError:
        return ValueError(
            f"the product of {listed(self.keys.values(), 9)} is beyond its numbers' range; "
            "the file is damaged, get it again"
        )

    def not_applied(self) -> ValueError:
        return ValueError(
            f"{shortened(self.name)} has {listed(self.keys.values(), 9)}, an adapter that ComfyUI can't apply; "
            "merge it into its base model with the program that made it, or get the file as a LoRA"
        )


def finite(tensor: Tensor) -> bool:
    """Whether a tensor, of at least one value, has neither NaN nor infinity; one on the meta device is taken to be."""
    return tensor.is_meta or all(math.isfinite(end) for end in tensor.aminmax())
