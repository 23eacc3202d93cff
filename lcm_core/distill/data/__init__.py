"""What a distillation trains on: pictures with captions, or latents that the teacher draws itself.

`pictures` are read from a `source`, encoded, and kept in a cache of `shards`, whose batches a training reads from the
disk; `Examples` are the same in memory. Either gives a step its batch, of one size, from the step's number alone.
"""

from .drawn import sample_latents
from .examples import Examples

__all__ = ["Examples", "sample_latents"]
