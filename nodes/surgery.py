"""LoRA vectors looked into and cut: compressed, extracted, weighted by block, compared, inspected."""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations

from comfy_api.latest import io

from ..lcm_core.accelerators import Recognition
from ..lcm_core.lora import LoRAVector, architecture, block_cosines, block_norms, extract, preset_weights, scale_blocks
from ..lcm_core.lora.extract import Report
from ..lcm_core.lora.record import EXPRESSION, PARENTS, call_record, file_record, sum_record
from ..lcm_core.text import listed, quoted
from . import plotting
from .acceleration import recipe_report
from .checks import numbers
from .host import lora_model
from .host.device import decomposition_device
from .host.files import checkpoint_path, full_lcm_files, stamp
from .host.lora_files import recognition
from .host.report import Said, progress, tell
from .inputs import CATEGORY, ENERGY, RANK, aliases, limits, size, vector_input, vector_outputs, weight_input
from .plotting import ALL

NUMBERS = set("0123456789.,+-eE \t\n")
HIGHLIGHTS = (
    *("modelspec.title", "modelspec.author", "modelspec.license", "modelspec.trigger_phrase", "modelspec.description"),
    *("ss_output_name", "ss_sd_model_name", "ss_network_module", "ss_num_train_images", "ss_steps"),
)


class Compress(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Compress",
            display_name="Compress LoRA Vector",
            category=CATEGORY,
            description="Resizes a LoRA to the nearest vector of lower rank: the least ‖τ − τ'‖ with rank ΔW' ≤ rank, "
            "module by module. At rank 0 and energy 1 only what is redundant goes, as after a sum, and τ' = τ.",
            **aliases("resize lora", "lora rank", "shrink lora"),
            inputs=[
                vector_input("lora", "The vector to make smaller."),
                RANK,
                ENERGY,
                io.Int.Input("conv_rank", default=0, min=0, max=4096, optional=True,
                             tooltip="The largest rank of a convolution, which needs less or more. 0: as rank."),
                io.Float.Input("sv_ratio", default=0.0, min=0.0, max=1_000_000.0, step=0.1, optional=True,
                               tooltip="Drops singular values below the module's largest divided by this, such as 10, "
                               "as sd-scripts' sv_ratio. 0 drops nothing."),
                io.Float.Input("sv_cumulative", default=1.0, min=0.01, max=1.0, step=0.001, round=0.0001, optional=True,
                               tooltip="The share of the sum of the module's singular values that is enough, as "
                               "sd-scripts' sv_cumulative. 1 drops nothing. The strictest of all limits counts."),
            ],
            outputs=vector_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, lora, rank, energy, conv_rank=0, sv_ratio=0.0, sv_cumulative=1.0):
        vector, chosen = lora_model.to_vector(lora), limits(rank, energy)
        chosen |= {
            "sv_ratio": sv_ratio or None,
            "sv_cumulative": sv_cumulative if sv_cumulative != 1 else None,
            "conv_rank": conv_rank or None,
        }
        small = vector.compress(**chosen)
        norm = vector.norm()
        error = (vector - small).norm() / norm if norm else 0.0
        record = call_record("compress", [lora_model.record_of(lora)], **chosen)
        report = f"before: {size(vector, norm)}\nafter: {size(small)}\nrelative error ‖τ − τ'‖/‖τ‖: {error:.3g}"
        return io.NodeOutput(lora_model.LoRATensors(small, record), report)


class Extract(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        files = full_lcm_files()
        return io.Schema(
            node_id="LCMLoRA_Extract",
            display_name="Extract LoRA Vector",
            category=CATEGORY,
            description="τ = θ_tuned − θ_base, as the nearest low-rank factors of each layer: a full LCM minus the "
            "model that it was distilled from is an LCM-LoRA.",
            **aliases("lora from model", "difference of checkpoints"),
            inputs=[
                io.Combo.Input("tuned", options=files, tooltip="The fine-tuned or distilled checkpoint."),
                io.Combo.Input("base", options=files, tooltip="The checkpoint that it was made from."),
                io.Int.Input("rank", default=64, min=0, max=4096,
                             tooltip="The largest rank of a layer. 0 sets no limit; then set energy below 1."),
                ENERGY,
                io.Boolean.Input("norms_and_biases", default=False,
                                 tooltip="Keeps the differences of norms and biases too. PEFT files can't hold them."),
            ],
            outputs=vector_outputs(),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, tuned, base, **_):
        return stamp(checkpoint_path(name) for name in (tuned, base) if name)

    @classmethod
    def execute(cls, tuned, base, rank, energy, norms_and_biases):
        paths, chosen = [checkpoint_path(tuned), checkpoint_path(base)], limits(rank, energy)
        vector, report = extract(
            *paths, **chosen, diffs=norms_and_biases, device=decomposition_device(), progress=progress()
        )
        record = call_record("extract", list(map(file_record, paths)), [1.0, -1.0], **chosen)
        return io.NodeOutput(lora_model.LoRATensors(vector, record), extraction_report(vector, report))


def extraction_report(vector: LoRAVector, report: Report) -> str:
    """How much of the difference the vector holds, and the layers that miss the most of it."""
    worst = sorted(report.layers, key=lambda layer: (1 - layer.energy) * layer.norm**2, reverse=True)[:5]
    return "\n".join([
        size(vector),
        f"{report.energy:.2%} of ‖θ_tuned − θ_base‖² in {len(report.layers)} layers",
        f"{report.equal} parameters are equal, {len(report.left_out)} left out: {listed(report.left_out) or 'none'}",
        "least complete:",
        *(f"  {layer.energy:.2%} of ‖ΔW‖ {layer.norm:.3g}, rank {layer.rank}: {layer.name}" for layer in worst),
    ])  # fmt: skip


class BlockWeights(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_BlockWeights",
            display_name="LoRA Block Weights",
            category=CATEGORY,
            description="ΔW' = w_block·ΔW: a LoRA's weights by block of the UNet (LBW), or by any pattern of module "
            "names.",
            **aliases("lbw", "lora blocks", "layer weights"),
            inputs=[
                vector_input("lora", "The vector to weight."),
                io.String.Input("weights", default="IN*: 1\nM00: 1\nOUT*: 1", multiline=True, dynamic_prompts=False,
                                tooltip="Lines of pattern: weight, where the first that fits a block (BASE, IN00–IN11, "
                                "M00, OUT00–OUT11, other) or a module's name counts. Or a community list of 12, 17, 20 "
                                "or 26 numbers."),
                weight_input("rest", 1.0, "The weight of what no line names. For the lists of 12 and 17 numbers, the "
                             "blocks that they leave out: an LCM-LoRA has convolutions there, which 0 removes."),
            ],
            outputs=vector_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, lora, weights, rest):
        vector = lora_model.to_vector(lora)
        weighted = scale_blocks(vector, block_weights(weights, rest))
        record = call_record("block_weights", [lora_model.record_of(lora)], blocks=" ".join(weights.split()), rest=rest)
        before, after = block_norms(vector), block_norms(weighted)
        lines = [f"{label}: norm {norm:.4g} → {after.get(label, 0.0):.4g}" for label, norm in before.items()]
        report = "\n".join([size(weighted, math.hypot(*after.values())), *lines])
        return io.NodeOutput(lora_model.LoRATensors(weighted, record), report)


def block_weights(text: str, rest: float) -> dict[str, float]:
    """Pattern -> weight of lines `pattern: weight`, or of a community list; `*` is the rest.

    ValueError for a list of another length, a line that has not both and a pattern that is there twice.
    """
    if NUMBERS.issuperset(text):
        return preset_weights(numbers("weights", text), rest=rest)
    weights: dict[str, float] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        pattern, _, weight = map(str.strip, line.rpartition(":"))
        values = numbers(f"the weight in the line {quoted(line)}", weight)
        if not pattern or pattern in weights or len(values) != 1:
            raise ValueError(
                f"the line {quoted(line)} is not a new pattern and its weight; write lines such as 'OUT*: 0.5', or a "
                "list of 12, 17, 20 or 26 numbers"
            )
        weights[pattern] = values[0]
    return {**weights, "*": weights.get("*", rest)}


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Compare",
            display_name="Compare LoRA Vectors",
            category=CATEGORY,
            description="A picture of two to four vectors: the norm ‖τ‖ of each in every block, and for each pair the "
            "cosine ⟨τ₁, τ₂⟩ / (‖τ₁‖·‖τ₂‖), near 0 where adding one leaves the other alone.",
            **aliases("lora similarity", "cosine", "heat map"),
            inputs=[
                vector_input("a", "The first vector."),
                vector_input("b", "The second vector."),
                vector_input("c", "A third vector, if there is one.", optional=True),
                vector_input("d", "A fourth vector, if there is one.", optional=True),
                io.String.Input("names", default="", optional=True,
                                tooltip="What the picture calls them, such as style, LCM. Empty: a, b, c, d."),
            ],
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="report")],
        )  # fmt: skip

    @classmethod
    def execute(cls, a, b, c=None, d=None, names=""):
        loras = {name: lora for name, lora in zip("abcd", (a, b, c, d), strict=True) if lora is not None}
        given = [name.strip() for name in names.split(",")] if names.strip() else list(loras)
        if len(set(given)) != len(loras) or len(given) != len(loras):
            raise ValueError(
                f"names {quoted(names)} are {len(given)} for {len(loras)} vectors; give one of its own to each"
            )
        vectors = {name: lora_model.to_vector(lora) for name, lora in zip(given, loras.values(), strict=True)}
        norms, cosines = measure(vectors)
        lines = [f"{name}: {size(vector, norms[name][ALL])}" for name, vector in vectors.items()]
        lines += [f"cosine of {one} and {other}: {found[ALL]:.4f}" for (one, other), found in cosines.items()]
        return io.NodeOutput(plotting.comparison(norms, cosines), "\n".join(lines))


def measure(vectors: Mapping[str, LoRAVector]) -> tuple[plotting.Norms, plotting.Cosines]:
    """Each vector's norms and each pair's cosines by block, and of the whole, which follows from the blocks."""
    if not any(vectors.values()):
        raise ValueError(f"the vectors {listed(vectors, 4)} are all empty; give some that have modules")
    pairs, report = list(combinations(vectors, 2)), progress()
    norms = {name: block_norms(vector) for name, vector in vectors.items()}
    whole = {name: math.hypot(*found.values()) for name, found in norms.items()}
    cosines = {}
    for done, (a, b) in enumerate(pairs, 1):
        found = block_cosines(vectors[a], vectors[b])
        dot = sum(value * norms[a].get(block, 0.0) * norms[b].get(block, 0.0) for block, value in found.items())
        cosines[a, b] = {ALL: dot / (whole[a] * whole[b]) if dot else 0.0, **found}
        report(done, len(pairs))
    return {name: {ALL: whole[name], **found} for name, found in norms.items()}, cosines


class Inspect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Inspect",
            display_name="Inspect LoRA Vector",
            category=CATEGORY,
            description="What a vector is: architecture, modules, ranks, alphas, size, the norm ‖τ‖ and its largest "
            "blocks, an accelerator's recipe, metadata, and how it was made.",
            **aliases("lora info", "metadata", "trigger words"),
            inputs=[vector_input("lora", "The vector to look into.")],
            outputs=[io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora):
        size_in_bytes = sum(tensor.nbytes for tensor in lora.values())
        record, found = lora_model.history(lora), recognition(lora)
        report = inspection(lora_model.to_vector(lora), size_in_bytes, record, found)
        tell(Said((report,)))
        return io.NodeOutput(report)


def inspection(vector: LoRAVector, size_in_bytes: int, record: Mapping[str, str], found: Recognition) -> str:
    """A vector's report, a fact a line; `found` is how it is sampled."""
    modules = vector.modules
    sizes = {f"{name}.weight": factors.shape for name, factors in modules.items()}
    blocks = sorted(block_norms(vector).items(), key=lambda block: -block[1])[:5]
    shown = [key for key in HIGHLIGHTS if vector.metadata.get(key)]
    parents = json.loads(sum_record([record], [1.0])[PARENTS])
    return "\n".join([
        f"architecture: {architecture(sizes, vector.metadata)}",
        f"size: {vector.parameters:,} parameters, {size_in_bytes / 2**20:.1f} MiB",
        f"modules: {tally(name.partition('.')[0] for name in modules)}",
        f"norm and bias differences: {len(vector.diffs)}",
        f"ranks: {tally(factors.rank for factors in modules.values())}",
        f"alphas: {tally(f'{factors.alpha:g}' for factors in modules.values())}",
        f"norm: {vector.norm():.4g}; largest in {', '.join(f'{label} {norm:.4g}' for label, norm in blocks) or 'none'}",
        *recipe_report(found),
        *(f"{key}: {textwrap.shorten(vector.metadata[key], 160)}" for key in shown),
        f"metadata entries: {len(vector.metadata)}",
        f"made as: {record.get(EXPRESSION, 'unknown')}",
        *(f"  {p['weight']:g} × {p.get('name')} ({p.get('file')}, sha256 {p['sha256'][:12]}…)" for p in parents),
    ])  # fmt: skip


def tally(values: Iterable[object]) -> str:
    """Each value and how often it is there, the most frequent first: `64 (270×), 32 (8×)`."""
    counts = Counter(values).most_common()
    more = f" and {len(counts) - 6} others" if len(counts) > 6 else ""
    return (", ".join(f"{value} ({count}×)" for value, count in counts[:6]) or "none") + more
