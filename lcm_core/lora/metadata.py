"""What of a file's text entries a vector keeps, and what a change of it leaves true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..accelerators import NAMING, SAMPLING, SEVERAL
from .peft_config import ALPHA_IS_RANK, CONFIG
from .record import EXPRESSION, PARENTS

# The families of networks that a transformer's LoRA can be for, by the spellings of its files: `Flux, Chroma`.
FAMILIES = "lcm_lora.families"
# Metadata that any other file than the one read would contradict, and that a changed vector would.
OF_THE_FILE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", CONFIG, *ALPHA_IS_RANK)
STALE = ("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_network_module", EXPRESSION, PARENTS)


def of_file(metadata: Mapping[str, str], families: Sequence[str]) -> dict[str, str]:
    """A vector's metadata as its file is read, whose spellings these families have."""
    kept = {key: text for key, text in metadata.items() if key not in OF_THE_FILE}
    told = [name for name in family_names(metadata) if name in families]
    return {**kept, FAMILIES: ", ".join(told or families)} if families else kept


def changed(*metadatas: Mapping[str, str], weights: Sequence[float] | None = None) -> dict[str, str]:
    """The metadata of what is made of vectors: what none contradicts and stays true, and the families of all.

    How an accelerator is sampled is kept of one, and beside styles; of several, only that there are several. weights:
    those of the vectors; one of 0 or less names no accelerator.
    """
    if weights is not None:
        metadatas = tuple(
            metadata if weight > 0 else {key: text for key, text in metadata.items() if key not in NAMING}
            for metadata, weight in zip(metadatas, weights, strict=True)
        )
    either = {key: text for metadata in metadatas for key, text in metadata.items()}
    agreed = {
        key: text
        for key, text in either.items()
        if key not in STALE and all(metadata.get(key, text) == text for metadata in metadatas)
    }
    if len({metadata[SAMPLING] for metadata in metadatas if SAMPLING in metadata}) > 1:
        agreed[SAMPLING] = SEVERAL
    told = [family_names(metadata) for metadata in metadatas if FAMILIES in metadata]
    if told:
        agreed[FAMILIES] = ", ".join(name for name in told[0] if all(name in names for names in told))
    return agreed


def family_names(metadata: Mapping[str, str]) -> list[str]:
    """The families that the metadata names; none if it does not say."""
    return [name for name in metadata.get(FAMILIES, "").split(", ") if name]
