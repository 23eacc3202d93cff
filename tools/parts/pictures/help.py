"""web/docs/<node id>/example.jpg: the pictures of the help pages, each made by its node on the pocket model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from tools.inprocess import Host
from tools.workshop import ROOT, Product, Workshop

LIMIT = 30_000  # bytes of a picture
SIDE = 112  # the pocket model's 128 pixels are shown as so many
WORDS = ("cat blue", "pizza pink", "rocket yellow")
OPEN = ("animal", "food", "vehicle")  # what the picture shows is left to the noise, so few steps are hard
SEED = 7
MANY_STEPS = {"steps": 25, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


def products(workshop: Workshop) -> Iterator[Product]:
    studio = cache(lambda: Studio(workshop.host))
    for node in (name for name in vars(Studio) if name.startswith("LCMLoRA_")):
        file = ROOT / "web" / "docs" / node / "example.jpg"
        yield Product(file, lambda node=node: jpeg(getattr(studio(), node)()))


class Studio:
    """The pocket model, its two LoRAs as vectors, and a function for each picture, named as the node."""

    def __init__(self, host: Host) -> None:
        self.run, self.labelled_grid = host.run, host.pack.nodes.plotting.labelled_grid
        self.model, self.clip, self.vae = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
        self.fast = host.run("LCMLoRA_Loader", model=self.model, lora_name="pocket_lcm.safetensors")[0]
        self.style, self.lcm = (
            host.run("LCMLoRA_LoadVector", lora_name=f"pocket_{name}.safetensors")[0] for name in ("style", "lcm")
        )

    def encode(self, text: str):
        return self.run("CLIPTextEncode", clip=self.clip, text=text)[0]

    def decode(self, latent: dict) -> list[Tensor]:
        return list(self.run("VAEDecode", samples=latent, vae=self.vae)[0])

    def sample(self, text: str, model=None, node: str = "LCMLoRA_Sampler", **inputs) -> dict:
        given = {"positive": self.encode(text), "negative": self.encode(""), "latent": empty(), "seed": SEED} | inputs
        return self.run(node, model=model or self.fast, **given)[0]

    def few(self, model=None, words: Iterable[str] = WORDS, **inputs) -> list[Tensor]:
        """LCM Sampler's picture (H, W, 3) of each word."""
        return [self.decode(self.sample(word, model, **inputs))[0] for word in words]

    def many(self, model=None, words: Iterable[str] = WORDS, **inputs) -> list[Tensor]:
        """The same by core's KSampler, at 25 guided steps unless the inputs say otherwise."""
        given = {"negative": self.encode(""), "latent_image": empty(), "seed": SEED, "denoise": 1.0, **MANY_STEPS}
        given |= {"model": model or self.model} | inputs
        latents = [self.run("KSampler", positive=self.encode(word), **given)[0] for word in words]
        return [self.decode(latent)[0] for latent in latents]

    def apply(self, lora, strength: float = 1.0):
        return self.run("LCMLoRA_ApplyVector", model=self.model, lora=lora, strength=strength)[0]

    def mix(self, lambda_1: float, lambda_2: float = 1.0, style=None):
        """The model with lambda_1 * style + lambda_2 * LCM."""
        lambdas = {"lambda_1": lambda_1, "lambda_2": lambda_2}
        return self.apply(self.run("LCMLoRA_Arithmetic", a=style or self.style, b=self.lcm, **lambdas)[0])

    def table(self, rows: dict[str, list[Tensor]], columns: Sequence[object] = WORDS, title: str = "") -> Tensor:
        """Labelled rows of pictures, (1, H, W, 3)."""
        cells = [[enlarged(picture) for picture in row] for row in rows.values()]
        return self.labelled_grid(cells, list(rows), list(map(str, columns)), "", title)

    def LCMLoRA_Sampler(self) -> Tensor:
        rows = {f"{n} step{'s' * (n > 1)}": self.few(words=OPEN, steps=n) for n in (1, 2, 4, 8)}
        return self.table(rows | {"4 steps, cfg 10": self.few(words=OPEN, cfg=10.0)}, OPEN)

    def LCMLoRA_Loader(self) -> Tensor:
        rows = {
            "without, 2 steps": self.many(words=OPEN, steps=2),
            "with, 2 steps": self.few(words=OPEN, steps=2),
            "with, KSampler cfg 7": self.many(self.fast, OPEN, steps=4, cfg=7.0),
            "without, 25 steps": self.many(words=OPEN),
        }
        return self.table(rows, OPEN)

    def LCMLoRA_StreamBatch(self) -> Tensor:
        (source,) = self.decode(self.sample("cat blue"))
        frames = torch.stack([source.roll(2 * i - 3, 1) for i in range(4)])
        (latent,) = self.run("VAEEncode", pixels=frames, vae=self.vae)
        made = self.decode(self.sample("frog blue", node="LCMLoRA_StreamBatch", latent=latent, denoise=0.7))
        return self.table({"in": list(frames), "out": made}, range(1, 5), "frame")

    def LCMLoRA_SamplerSelect(self) -> Tensor:
        gammas = (1.0, 0.5, 0.0)
        return self.table({f"gamma {gamma:g}": self.few(words=OPEN, gamma=gamma, seed=3) for gamma in gammas}, OPEN)

    def LCMLoRA_Schedule(self) -> Tensor:
        strengths = (0.3, 0.5, 0.7, 1.0)
        source = self.sample("cat yellow")
        rows = {
            word: self.decode(source) + [self.few(None, [word], latent=source, denoise=s, seed=5)[0] for s in strengths]
            for word in ("frog", "pig")
        }
        return self.table(rows, ("input", *strengths), "denoise")

    def LCMLoRA_ApplyVector(self) -> Tensor:
        strengths = (-0.5, 0, 0.4, 0.8, 1.2)
        rows = {word: [self.many(self.apply(self.style, s), [word])[0] for s in strengths] for word in WORDS}
        return self.table(rows, strengths, "strength")

    def LCMLoRA_Arithmetic(self) -> Tensor:
        return self.table({
            "LCM, 4 steps": self.few(),
            "style, 4 steps of KSampler": self.many(self.apply(self.style), steps=4),
            "0.8 style + LCM, 4 steps": self.few(self.mix(0.8)),
            "1.0 style + LCM, 4 steps": self.few(self.mix(1.0)),
            "style, 25 steps of KSampler": self.many(self.apply(self.style)),
        })  # fmt: skip

    def LCMLoRA_Expression(self) -> Tensor:
        texts = ("b", "a + b", "b - 0.3*a")
        rows = {
            text: self.few(self.apply(self.run("LCMLoRA_Expression", expression=text, a=self.style, b=self.lcm)[0]))
            for text in texts
        }
        return self.table(rows)

    def LCMLoRA_Combine(self) -> Tensor:
        methods = ("sum", "slerp", "magnitude_prune", "ties", "dare_linear", "dare_ties")
        rows = {
            name: self.few(self.apply(self.run("LCMLoRA_Combine", a=self.style, b=self.lcm, method=name)[0]))
            for name in methods
        }
        return self.table(rows)

    def LCMLoRA_Compress(self) -> Tensor:
        ranks = (32, 8, 4, 2, 1)
        small = [self.apply(self.run("LCMLoRA_Compress", lora=self.style, rank=rank)[0]) for rank in ranks]
        return self.table({word: [self.many(model, [word])[0] for model in small] for word in WORDS}, ranks, "rank")

    def LCMLoRA_BlockWeights(self) -> Tensor:
        texts = ("*: 1", "IN*: 1", "M00: 1", "OUT*: 1", "IN*: 0", "OUT*: 0")
        rows = {}
        for text in texts:
            rest = 1.0 if text.endswith("0") else 0.0
            weighted = self.run("LCMLoRA_BlockWeights", lora=self.style, weights=text, rest=rest)[0]
            rows[f"{text}, rest {rest:g}"] = self.many(self.apply(weighted))
        return self.table(rows)

    def LCMLoRA_Compare(self) -> Tensor:
        return self.run("LCMLoRA_Compare", a=self.style, b=self.lcm, names="style, LCM")[0]

    def LCMLoRA_SweepGrid(self) -> Tensor:
        texts = {"lambda_1": "0:1:0.5", "lambda_2": "0:1:0.5"}
        firsts, seconds, _ = self.run("LCMLoRA_Sweep", **texts)
        pictures = [self.few(self.mix(a, b), WORDS[1:2])[0] for a, b in zip(firsts, seconds, strict=True)]
        lists = {name: [text] for name, text in texts.items()}
        return self.run("LCMLoRA_SweepGrid", images=[enlarged(picture)[None] for picture in pictures], **lists)[0]


def empty() -> dict:
    return {"samples": torch.zeros(1, 4, 16, 16)}


def enlarged(picture: Tensor) -> Tensor:
    """The picture (H, W, 3) with sides of SIDE pixels."""
    size = {"size": (SIDE, SIDE), "mode": "bicubic", "antialias": True}
    return torch.nn.functional.interpolate(picture.movedim(-1, 0)[None], **size)[0].movedim(0, -1).clamp(0, 1)


def jpeg(picture: Tensor) -> bytes:
    """A picture (1, H, W, 3) as a JPEG of the best quality within LIMIT."""
    image = Image.fromarray((picture[0] * 255).round().to(torch.uint8).numpy())
    for quality in range(90, 40, -5):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LIMIT:
            return file.getvalue()
    raise ValueError(f"a picture of {image.width} × {image.height} does not fit in {LIMIT} bytes; draw fewer cells")