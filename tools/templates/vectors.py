"""LoRAs as vectors: added, swept over and taken apart."""

from __future__ import annotations

from .common import LCM, POCKET, SIZE, STYLE, WORDS, prompts, sampled
from .graph import Graph, Template


def style_mix() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=POCKET)
    style = graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=STYLE)
    lcm = graph.add("LCMLoRA_LoadVector", "Acceleration vector τ_LCM", lora_name=LCM)
    mix = graph.add("LCMLoRA_Arithmetic", "0.8·style + 1.0·LCM", a=style, b=lcm)
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=mix)
    texts = prompts(graph, base[1], "cat")
    empty = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=4)
    sampler, picture = sampled(graph, model, texts, empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora_style")
    note = """## A style in four steps

LoRAs are vectors, and the paper adds them: τ'_LCM = λ₁·τ' + λ₂·τ_LCM with λ₁ = 0.8 for the style and λ₂ = 1.0 for the
acceleration. The sum is exact, whatever ranks and alphas the files have.

Try λ₁ from 0.4 to 1.2. LCM Sampler makes the model's sampling consistent by itself."""
    return Template(
        "lcm_lora_style_mix", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base]), ("LoRA vectors", [style, lcm])], [("LoRA vectors: sum", [mix]), ("Model: θ + τ", [model])],
         [("Prompt", texts), ("Picture", [empty])], [("Sampling", [sampler])], [("Result", [picture, save])]],
    )  # fmt: skip


def lambda_grid() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=POCKET)
    style = graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=STYLE)
    lcm = graph.add("LCMLoRA_LoadVector", "Acceleration vector τ_LCM", lora_name=LCM)
    rows = graph.add("PrimitiveString", "λ₁: rows, the style", value="0, 0.4, 0.8")
    columns = graph.add("PrimitiveString", "λ₂: columns, the acceleration", value="0, 0.5, 1")
    sweep = graph.add("LCMLoRA_Sweep", lambda_1=rows, lambda_2=columns)
    mix = graph.add(
        "LCMLoRA_Arithmetic", "λ₁·style + λ₂·LCM, each pair", a=style, b=lcm, lambda_1=sweep, lambda_2=sweep[1]
    )  # fmt: skip
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=mix)
    texts = prompts(graph, base[1], "animal")
    empty = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=4)
    sampler, picture = sampled(graph, model, texts, empty, base[2], steps=2)
    grid = graph.add("LCMLoRA_SweepGrid", images=picture, lambda_1=rows, lambda_2=columns)
    save = graph.add("SaveImage", images=grid, filename_prefix="lcm_lora_lambda_grid")
    note = """## A grid of λ₁ × λ₂

τ'_LCM = λ₁·τ' + λ₂·τ_LCM, made and sampled once for each pair: down the rows the style grows with λ₁, along the
columns two steps get sharper with λ₂.

Write your values into the two texts on the left, such as 0, 0.4, 0.8 or the range 0:1:0.25. λ Sweep's outputs are
lists, so every node after them runs once for each pair; λ Sweep Grid puts all pictures into one."""
    return Template(
        "lcm_lora_lambda_grid", graph, [(note, 2), (WORDS, 1)],
        [[("Model", [base]), ("LoRA vectors", [style, lcm]), ("LoRA vectors: the values of λ", [rows, columns])],
         [("LoRA vectors: sums", [sweep, mix]), ("Model: θ + τ", [model])], [("Prompt", texts), ("Picture", [empty])],
         [("Sampling", [sampler])], [("Result", [picture, grid, save])]],
    )  # fmt: skip


def vector_surgery() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", "The model that it was merged into", ckpt_name=POCKET)
    merge = graph.add(
        "LCMLoRA_Extract", "τ of the merge = θ_merged − θ", tuned="pocket_merged.safetensors", base=POCKET, rank=96
    )  # fmt: skip
    style = graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=STYLE)
    rest = graph.add("LCMLoRA_Expression", "Take the style out", expression="a - 0.8*b", a=merge, b=style)
    small = graph.add("LCMLoRA_Compress", lora=rest, rank=64)
    lcm = graph.add("LCMLoRA_LoadVector", "The LCM-LoRA, to compare", lora_name=LCM)
    compared = graph.add("LCMLoRA_Compare", a=small, b=lcm, c=style, names="found, LCM, style")
    heat = graph.add("SaveImage", "Norms and cosines by block", images=compared, filename_prefix="lora_comparison")
    inspected = graph.add("LCMLoRA_Inspect", lora=small)
    saved = graph.add("LCMLoRA_SaveVector", lora=small, filename_prefix="loras/found_lcm")
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=small)
    texts = prompts(graph, base[1], "animal")
    empty = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=4)
    sampler, picture = sampled(graph, model, texts, empty, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="found_lcm")
    note = """## The acceleration out of a merged checkpoint

pocket_merged is the pocket model with 0.8 of a style and an LCM-LoRA merged in. **Extract** takes the difference of
the two checkpoints, **LoRA Expression** takes the style out, **Compress** finds the nearest vector of rank 64: the
LCM-LoRA again, as the cosine of 1 with the released one shows. It is saved into output/loras, where loaders find it,
and makes the pictures: four steps, no style.

Try rank 16 in Compress. With your own files: any merge or fine-tune, the model that it was made from, and what you
want out of it."""
    return Template(
        "lora_vector_surgery", graph, [(note, 3), (WORDS, 1)],
        [[("Model", [base]), ("LoRA vectors: extract", [merge]), ("Prompt", texts)],
         [("LoRA vectors: subtract", [style, rest]), ("LoRA vectors: compress", [small]), ("Picture", [empty])],
         [("LoRA vectors: compare", [lcm, compared, heat])],
         [("LoRA vectors: inspect, save", [inspected, saved]), ("Model: θ + τ", [model])], [("Sampling", [sampler])],
         [("Result", [picture, save])]],
    )  # fmt: skip
