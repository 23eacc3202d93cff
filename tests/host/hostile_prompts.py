"""Graphs for each node of the pack with some of its inputs made wrong: types, links, numbers, texts, choices."""

from __future__ import annotations

import random

Graph = dict[str, dict]
TRAINING = ("Distill", "Finetune")

MARKUP = "<img src=x onerror=alert(1)>"
TEXTS = [
    "", " ", "\0", "a\0b", "\ud800", "\u202egnp", "𝔘𝔫𝔦©ode", "e\u0301" * 50, "../x", "../" * 40 + "etc/x", "..\\x",
    "/etc/x", "C:\\x", "\\\\host\\x", "~/x", "a/" * 2000, "x" * 100_000, "%year%/%date:yyyy%", "%width%" * 200,
    "%s%n%x{0}{x.__class__}", MARKUP, f"<script>{MARKUP}</script>",
    "[[y|https://y onfocus=alert(1) z]] http://z/__LNK0__", "__LNK0__", "a:b", "a*?|b", "con", "x\ny", "\n" * 50_000,
    "1e3", "0x10", "1_000", "١٢", "-1", "9" * 400, "9" * 5000, "1," * 50_000, "1e999", "nan", "-inf",
    "18446744073709551616", "4294967296", "0:1:1e-9", "0:1:0", "1:0:0.1", "::", "0:1:0.01 " * 500, "(" * 5000,
    "-" * 5000, "1*" * 5000 + "a", "a+" * 3000 + "a", "__import__('os').system('x')", "a/0", "1e308*a*1e308", "'a",
    "**: 1", "*: 1\n*: 2", "*a" * 500 + ": 1", "M00: 1e400", ": 1", "None", "null", "true", "999, 759", "999,,759",
    "259, 999", "0.5", "a", "a, a",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 7, 1.5, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 2**31, 2**32,
    2**63, 2**64 - 1, 2**64, -(2**63), 10**30, 10**400, "12", "1e3", "x", "",
]  # fmt: skip
OTHERS = [
    None, True, False, {}, {"a": 1}, {"samples": 1}, {"samples": [[1]]}, {"lora_A": 1}, {"__value__": [1, 2]},
    {"__value__": []}, [], [1], [1, 2, 3], [[1, 0], 0], ["missing", 0], ["lat", 99], ["lat", -1],
]  # fmt: skip


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def ours(name: str, **inputs: object) -> dict:
    return node(f"LCMLoRA_{name}", **inputs)


SETTINGS = {
    "steps": 1, "learning_rate": 1e-4, "rank": 2, "batch_size": 1, "seed": 0, "links": 50, "precision": "model",
    "gradient_checkpointing": False, "save_every": 1, "state_prefix": "training/state", "preview_every": 0,
}  # fmt: skip
SAMPLING = {"positive": ["pos", 0], "negative": ["neg", 0], "latent": ["lat", 0], "seed": 5, "steps": 2, "cfg": 1.0,
            "denoise": 1.0, "original_steps": 50, "gamma": 1.0, "timesteps": ""}  # fmt: skip
VALID: Graph = {
    "ckpt": node("CheckpointLoaderSimple", ckpt_name="pocket.safetensors"),
    "pos": node("CLIPTextEncode", text="cat", clip=["ckpt", 1]),
    "neg": node("CLIPTextEncode", text="", clip=["ckpt", 1]),
    "lat": node("EmptyLatentImage", width=64, height=64, batch_size=2),
    "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
    "style": ours("LoadVector", lora_name="pocket_style.safetensors"),
    "LoadVector": ours("LoadVector", lora_name="pocket_lcm.safetensors"),
    "Loader": ours("Loader", model=["ckpt", 0], lora_name="pocket_lcm.safetensors", strength=1.0, clip=["ckpt", 1]),
    "Sampler": ours("Sampler", model=["Loader", 0], **SAMPLING, guidance_until=1.0, seeds="", start_at_step=0,
                    end_at_step=10000, add_noise=True, return_with_leftover_noise=False, guidance_from=0.0),
    "StreamBatch": ours("StreamBatch", model=["Loader", 0], **SAMPLING),
    "SamplerSelect": ours("SamplerSelect", gamma=1.0, latent=["lat", 0], guidance_until=1.0, guidance_from=0.0),
    "Schedule": ours("Schedule", model=["Loader", 0], steps=4, denoise=1.0, original_steps=50, timesteps=""),
    "ModelSampling": ours("ModelSampling", model=["ckpt", 0]),
    "GuidanceEmbedding": ours("GuidanceEmbedding", model=["ckpt", 0], file="pocket.safetensors", omega=7.5,
                              omega_per_image=""),
    "ApplyVector": ours("ApplyVector", model=["ckpt", 0], lora=["style", 0], strength=1.0, clip=["ckpt", 1]),
    "Hooks": ours("Hooks", lora=["style", 0], strength=1.0, schedule="step 1: 0, step 2: 1", applied_to="activations",
                  sigmas=["Schedule", 0]),
    "Arithmetic": ours("Arithmetic", a=["style", 0], lambda_1=0.8, b=["LoadVector", 0], lambda_2=1.0, lambda_3=0.0),
    "Expression": ours("Expression", expression="0.8*a + 1.0*b", a=["style", 0], b=["LoadVector", 0]),
    "Combine": ours("Combine", a=["style", 0], b=["LoadVector", 0], method="sum", weight_a=1.0, weight_b=1.0,
                    weight_c=1.0, weight_d=1.0, density=0.5, t=0.5, seed=0, majority_sign_method="total",
                    per_module=False, rank=0, energy=1.0),
    "Compress": ours("Compress", lora=["style", 0], rank=2, energy=1.0),
    "Extract": ours("Extract", tuned="pocket.safetensors", base="pocket.safetensors", rank=2, energy=1.0,
                    norms_and_biases=False),
    "BlockWeights": ours("BlockWeights", lora=["style", 0], weights="*: 0.5", rest=1.0),
    "Compare": ours("Compare", a=["style", 0], b=["LoadVector", 0], names=""),
    "Inspect": ours("Inspect", lora=["style", 0]),
    "Sweep": ours("Sweep", lambda_1="0, 1", lambda_2="0.5"),
    "SweepGrid": ours("SweepGrid", images=["picture", 0], lambda_1="0", lambda_2="1"),
    "SaveVector": ours("SaveVector", lora=["style", 0], filename_prefix="loras/x", dialect="kohya", dtype="float16"),
    "Distill": ours("Distill", model=["ckpt", 0], positive=["pos", 0], latents=["lat", 0], **SETTINGS, omega_min=5.0,
                    omega_max=15.0, solver="ddim", negative=["neg", 0]),
    "Finetune": ours("Finetune", model=["ckpt", 0], positive=["pos", 0], latents=["lat", 0], **SETTINGS),
}  # fmt: skip
TARGETS = [name for name, entry in VALID.items() if entry["class_type"] == f"LCMLoRA_{name}"]


def prompt(draw: random.Random, info: dict, absolute: str) -> Graph:
    """A graph for one node, some of whose inputs are wrong.

    info: the host's /object_info. absolute: a path outside of what the host may write to. No training is long.
    """
    target = draw.choice(TARGETS if draw.random() < 0.9 else TRAINING)
    graph: Graph = {}
    pending = [target]
    while pending:
        name = pending.pop()
        graph[name] = {**VALID[name], "inputs": dict(VALID[name]["inputs"])}
        pending += [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    declared = info[VALID[target]["class_type"]]["input"]
    kinds = {name: spec[0] for group in ("required", "optional") for name, spec in declared.get(group, {}).items()}
    for name in draw.sample(sorted(kinds), min(len(kinds), draw.choice([1, 1, 1, 2, 3]))):
        kind, inputs = kinds[name], graph[target]["inputs"]
        fitting = {"INT": [NUMBERS] * 3, "FLOAT": [NUMBERS] * 3, "STRING": [TEXTS, TEXTS, TEXTS, [absolute]]}
        value = draw.choice(draw.choice([*fitting.get(kind, [TEXTS, NUMBERS]), OTHERS]))
        if draw.random() < 0.15:
            other = draw.choice(sorted(VALID))
            if other in graph or not any(isinstance(v, list) for v in VALID[other]["inputs"].values()):
                graph.setdefault(other, VALID[other])
                value = [other, draw.choice([0, 0, 1, 2])]
        if draw.random() < 0.05:
            inputs.pop(name, None)
        elif not (target in TRAINING and name == "steps" and isinstance(value, int) and value > 2):
            inputs[name] = value
    if draw.random() < 0.03:
        graph[target]["inputs"][draw.choice(["extra_pnginfo", "unknown"])] = draw.choice(TEXTS)
    graph["sink"] = node("PreviewAny", source=[target, 0])
    return graph
