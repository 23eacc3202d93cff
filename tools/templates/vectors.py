"""LoRAs as vectors: added, swept over, taken apart and compared."""

from __future__ import annotations

from .common import (
    LCM,
    PAPERCUT,
    POCKET,
    SD15,
    SD15_LCM,
    SDXL,
    SDXL_LCM,
    SIZE,
    STYLE,
    Setting,
    empty,
    files,
    prompts,
    sampled,
)
from .graph import Graph, Node, Template
from .released import DREAMSHAPER


def style_and_lcm(graph: Graph, on: Setting) -> tuple[Node, Node]:
    """(the style vector, the acceleration vector) of SDXL"""
    return (
        graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=on(PAPERCUT, STYLE)),
        graph.add("LCMLoRA_LoadVector", "Acceleration vector τ_LCM", lora_name=on(SDXL_LCM, LCM)),
    )


def style_mix(on: Setting) -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=on(SDXL, POCKET))
    style, lcm = style_and_lcm(graph, on)
    mix = graph.add("LCMLoRA_Arithmetic", "0.8·style + 1.0·LCM", a=style, b=lcm)
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=mix)
    texts = prompts(graph, base[1], on("papercut, a cute fox", "cat"))
    latent = empty(graph, on(1024, SIZE), on(1, 4))
    sampler, picture = sampled(graph, model, texts, latent, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="lcm_lora_style")
    words = on(" Papercut is the style of the paper's figure; its word belongs into the prompt.", "")
    note = f"""## A style in four steps

LoRAs are vectors, and the paper adds them: τ'_LCM = λ₁·τ' + λ₂·τ_LCM with λ₁ = 0.8 for the style and λ₂ = 1.0 for the
acceleration. The sum is exact, whatever ranks and alphas the files have.{words}

Try λ₁ from 0.4 to 1.2. LCM Sampler makes the model's sampling consistent by itself."""
    return Template(
        "lcm_lora_style_mix", graph, [(note, 2), (files(on, SDXL, PAPERCUT, SDXL_LCM), 1)],
        [[("Model", [base]), ("LoRA vectors", [style, lcm])], [("LoRA vectors: sum", [mix]), ("Model: θ + τ", [model])],
         [("Prompt", texts), ("Picture", [latent])], [("Sampling", [sampler])], [("Result", [picture, save])]],
    )  # fmt: skip


def lambda_grid(on: Setting) -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=on(SDXL, POCKET))
    style, lcm = style_and_lcm(graph, on)
    rows = graph.add("PrimitiveString", "λ₁: rows, the style", value="0, 0.4, 0.8")
    columns = graph.add("PrimitiveString", "λ₂: columns, the acceleration", value="0, 0.5, 1")
    sweep = graph.add("LCMLoRA_Sweep", lambda_1=rows, lambda_2=columns)
    mix = graph.add(
        "LCMLoRA_Arithmetic", "λ₁·style + λ₂·LCM, each pair", a=style, b=lcm, lambda_1=sweep, lambda_2=sweep[1]
    )  # fmt: skip
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=mix)
    texts = prompts(graph, base[1], on("papercut, a cute fox", "animal"))
    latent = empty(graph, on(1024, SIZE), on(1, 4))
    steps = on(4, 2)
    sampler, picture = sampled(graph, model, texts, latent, base[2], steps=steps)
    grid = graph.add("LCMLoRA_SweepGrid", images=picture, lambda_1=rows, lambda_2=columns)
    save = graph.add("SaveImage", images=grid, filename_prefix="lcm_lora_lambda_grid")
    note = f"""## A grid of λ₁ × λ₂

τ'_LCM = λ₁·τ' + λ₂·τ_LCM, made and sampled once for each pair: down the rows the style grows with λ₁, along the
columns {steps} steps get sharper with λ₂.

Write your values into the two texts on the left, such as 0, 0.4, 0.8 or the range 0:1:0.25. λ Sweep's outputs are
lists, so every node after them runs once for each pair; λ Sweep Grid puts all pictures into one."""
    return Template(
        "lcm_lora_lambda_grid", graph, [(note, 2), (files(on, SDXL, PAPERCUT, SDXL_LCM), 1)],
        [[("Model", [base]), ("LoRA vectors", [style, lcm]), ("LoRA vectors: the values of λ", [rows, columns])],
         [("LoRA vectors: sums", [sweep, mix]), ("Model: θ + τ", [model])], [("Prompt", texts), ("Picture", [latent])],
         [("Sampling", [sampler])], [("Result", [picture, grid, save])]],
    )  # fmt: skip


def vector_surgery(on: Setting) -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", "The model that it was made from", ckpt_name=on(SD15, POCKET))
    found = graph.add(
        "LCMLoRA_Extract", on("τ = θ_DreamShaper − θ", "τ of the merge = θ_merged − θ"),
        tuned=on(DREAMSHAPER, "pocket_merged.safetensors"), base=on(SD15, POCKET), rank=on(64, 96),
    )  # fmt: skip
    other = graph.add(
        "LCMLoRA_LoadVector", on("Acceleration vector τ_LCM", "Style vector τ'"), lora_name=on(SD15_LCM, STYLE)
    )  # fmt: skip
    changed = graph.add(
        "LCMLoRA_Expression", on("Add the acceleration", "Take the style out"), expression=on("a + b", "a - 0.8*b"),
        a=found, b=other,
    )  # fmt: skip
    small = graph.add("LCMLoRA_Compress", lora=changed, rank=on(96, 64))
    inspected = graph.add("LCMLoRA_Inspect", lora=small)
    saved = graph.add("LCMLoRA_SaveVector", lora=small, filename_prefix="loras/found")
    model = graph.add("LCMLoRA_ApplyVector", model=base, lora=small)
    texts = prompts(graph, base[1], on("portrait of a knight in a forest, detailed armour", "animal"))
    latent = empty(graph, on(512, SIZE), 4)
    sampler, picture = sampled(graph, model, texts, latent, base[2])
    save = graph.add("SaveImage", images=picture, filename_prefix="found_vector")
    note = on(
        """## A fine-tune as a vector, in four steps

**Extract** takes the difference of two checkpoints, DreamShaper and the Stable Diffusion that it was made from, as
factors of rank 64; its report says how much of the difference they hold. **LoRA Expression** adds the LCM-LoRA,
**Compress** finds the nearest vector of rank 96. It is saved into output/loras, where loaders find it, and makes the
pictures: DreamShaper's manner on the plain model, in four steps.""",
        """## The acceleration out of a merged checkpoint

pocket_merged is the pocket model with 0.8 of a style and an LCM-LoRA merged in. **Extract** takes the difference of
the two checkpoints, **LoRA Expression** takes the style out, **Compress** finds the nearest vector of rank 64: the
LCM-LoRA again. It is saved into output/loras, where loaders find it, and makes the pictures: four steps, no style.""",
    )
    own = """Try rank 16 in Compress. With your own files: any merge or fine-tune, the model that it was made from, and
what you want in it or out of it."""
    return Template(
        "lora_vector_surgery", graph, [(f"{note}\n\n{own}", 2), (files(on, SD15, DREAMSHAPER, SD15_LCM), 1)],
        [[("Model", [base]), ("LoRA vectors: extract", [found]), ("LoRA vectors", [other]),
          ("Model: θ + τ", [model])],
         [("LoRA vectors: change", [changed, small]), ("LoRA vectors: save", [saved]), ("Picture", [latent])],
         [("Prompt", texts), ("LoRA vectors: inspect", [inspected])],
         [("Sampling", [sampler])], [("Result", [picture, save])]],
    )  # fmt: skip


def comparison(on: Setting) -> Template:
    graph = Graph()
    style, lcm = style_and_lcm(graph, on)
    compared = graph.add("LCMLoRA_Compare", a=style, b=lcm, names="style, LCM")
    heat = graph.add("SaveImage", "Norms and cosines by block", images=compared, filename_prefix="lora_comparison")
    looks = [graph.add("LCMLoRA_Inspect", f"What is in the {name}", lora=lora)
             for name, lora in (("style", style), ("LCM-LoRA", lcm))]  # fmt: skip
    note = """## Which blocks do two LoRAs change?

**Compare** draws the norm of each vector in every block, and the cosine between the two: near 0 they do different
things and add up, near 1 they do the same, below 0 they work against each other. **Inspect** says what is in a file:
its modules, ranks, words and how it is sampled.

Connect up to four vectors, also sums and compressed ones, to see what became of them."""
    return Template(
        "lora_vector_comparison", graph, [(note, 2), (files(on, PAPERCUT, SDXL_LCM), 1)],
        [[("LoRA vectors", [style, lcm])], [("LoRA vectors: compare", [compared]), ("Result", [heat])],
         [("LoRA vectors: inspect", looks)]],
    )  # fmt: skip
