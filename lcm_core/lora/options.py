"""The options that several combine methods have in common.

Places are given once, in the order in which options came; the next new one takes the number after the highest.
"""

from typing import Annotated

from .method import Option

MAJORITY_SIGN_METHODS = ("total", "frequency")

Density = Annotated[float, Option("the share of values to keep", place=1, minimum=0, maximum=1, above=True)]
Seed = Annotated[int, Option("what decides which values are dropped", place=3)]
MajoritySign = Annotated[
    str,
    Option(
        "whether a value's sign is that of the sum (total) or of most vectors (frequency)",
        place=4,
        choices=MAJORITY_SIGN_METHODS,
        flag="majority-sign",
    ),
]
PerModule = Annotated[bool, Option("whether each module is measured by itself, not the whole vector", place=5)]
