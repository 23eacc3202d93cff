"""The judge: a small classifier of the data's pictures that says whether a picture shows what its prompt names.

It sees object, background, drawing style and whose hand drew it. Its features measure how far generated pictures are
from held-out ones: Fréchet and kernel distance, precision and recall. `python -m pocket.judge` trains it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .autoencoder import load_autoencoder
from .data import BACKGROUNDS, CATEGORIES, CATEGORY_OF, OBJECTS, SETS, SIZE, STYLES, pictures
from .training import DEVICE, train

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
REFERENCE = WEIGHTS.with_name("judge_features.safetensors")  # of held-out pictures, by style: (1280, 48) each
FEATURES = 48
BATCH, STEPS = 256, 3000


class Judge(nn.Module):
    """Pictures (B, 3, 128, 128) in [0, 1] to features (B, 48) of unit variance; heads to logits of what they show."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, wider in ((3, 24), (24, 48), (48, 64), (64, 96), (96, 96)):
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * (SIZE // 32) ** 2, FEATURES))
        sizes = {"object": len(OBJECTS), "background": len(BACKGROUNDS), "style": len(STYLES), "hand": len(SETS)}
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, size) for name, size in sizes.items()})
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        return (self.body(images * 2 - 1) - self.mean) / self.deviation

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        features = F.silu(self.body(images * 2 - 1))
        return {name: head(features) for name, head in self.heads.items()}


def as_batch(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, 128, 128) in [0, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    if batch.shape[-1] == SIZE:
        return batch
    return F.interpolate(batch, size=(SIZE, SIZE), mode="bilinear", antialias=True)


def load_judge(path: Path = WEIGHTS, device: torch.device | str = "cpu") -> Judge:
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return judge.to(device).requires_grad_(False).eval()


def right(judge: Judge, images: Tensor, prompts: list[str]) -> Tensor:
    """(B,) booleans: each of the prompt's words (category, object or background colour) is what the judge sees."""
    logits = {name: values.cpu() for name, values in judge.logits(images).items()}
    objects = logits["object"].softmax(1)
    members = torch.tensor([[CATEGORY_OF[word] == category for word in OBJECTS] for category in CATEGORIES])
    category = (objects @ members.T.float()).argmax(1)
    seen = zip(category, objects.argmax(1), logits["background"].argmax(1), strict=True)
    names = [{list(CATEGORIES)[c], OBJECTS[o], list(BACKGROUNDS)[b]} for c, o, b in seen]
    known = {*CATEGORIES, *OBJECTS, *BACKGROUNDS}
    return torch.tensor([set(p.split()) & known <= found for p, found in zip(prompts, names, strict=True)])


def prompt_accuracy(judge: Judge, images: np.ndarray, prompts: list[str]) -> float:
    """Share of pictures, uint8 (B, H, W, 3), in which the judge sees what the prompt says."""
    return right(judge, as_batch(images), prompts).float().mean().item()


def in_style(judge: Judge, images: Tensor, style: str = "paper") -> Tensor:
    """(B,) booleans: the judge takes the picture (B, 3, 128, 128) for one of that drawing style."""
    return (judge.logits(images)["style"].argmax(1) == STYLES.index(style)).cpu()


def clarity(judge: Judge, images: np.ndarray) -> float:
    """Mean over pictures, uint8 (B, H, W, 3), of how sure the judge is of both the object and the hand that drew it."""
    logits = judge.logits(as_batch(images))
    object_, hand = (logits[name].softmax(1).amax(1) for name in ("object", "hand"))
    return (object_ * hand).mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two feature sets (N, F), each taken as a Gaussian (arXiv 1706.08500); it shrinks with N."""
    a, b = a.double(), b.double()
    spread = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    trace = a.var(0).sum() + b.var(0).sum() - 2 * spread
    return ((a.mean(0) - b.mean(0)).square().sum() + trace).item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of features (N, F) under (x·y/F + 1)³, unbiased in N (arXiv 1801.01401)."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return (within(a) + within(b) - 2 * kernel(a, b).mean()).item()


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """(precision, recall) of features (N, F): shares inside the other set's neighbourhoods (arXiv 1904.06991)."""

    def covered(points: Tensor, by: Tensor) -> float:
        radius = torch.cdist(by, by).kthvalue(neighbours + 1).values
        return (torch.cdist(points, by) <= radius).any(1).float().mean().item()

    return covered(generated, real), covered(real, generated)


def jackknife(statistic: Callable[[Tensor], float], groups: Tensor) -> tuple[float, float]:
    """(statistic of all rows, its standard error) of groups (G, N, …): noise seeds, each left out once."""
    count = len(groups)
    without = [statistic(groups[torch.arange(count) != g].flatten(0, 1)) for g in range(count)]
    error = np.sqrt((count - 1) * np.var(without))
    return statistic(groups.flatten(0, 1)), float(error)


def diversity(features: Tensor) -> tuple[float, float]:
    """(mean distance between two pictures of one prompt, its standard error), of features (P, N, F) of P prompts.

    Mean over the pairs of a prompt's N ≥ 3 pictures, then over the prompts. The error is the jackknife's over the
    pictures, since pairs share pictures; the prompts count as fixed.
    """
    prompts, count = features.shape[:2]
    distances = torch.cdist(features.double(), features.double())
    sums, whole = distances.sum(2), distances.sum((1, 2))
    without_one = (whole[:, None] - 2 * sums) / ((count - 1) * (count - 2))
    error = without_one.var(1, unbiased=False).sum().mul(count - 1).sqrt() / prompts
    return whole.mean().item() / (count * (count - 1)), error.item()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts up to 4 pixels, changes of brightness and a little noise, so that small flaws do not decide."""
    device = images.device
    x = F.pad(images, (4, 4, 4, 4), mode="replicate")
    dy, dx = torch.randint(0, 9, (2,), generator=generator, device=device).tolist()
    x = x[:, :, dy : dy + SIZE, dx : dx + SIZE]
    scale = 1 + 0.1 * torch.randn(len(x), 3, 1, 1, generator=generator, device=device)
    return (x * scale + 0.05 * torch.randn(x.shape, generator=generator, device=device)).clamp(0, 1)


@dataclass(frozen=True)
class Labelled:
    """Pictures of both styles, as they are and as the autoencoder gives them back, and what the heads should say."""

    images: Tensor
    labels: dict[str, Tensor]

    @staticmethod
    def of(folder: Path, split: str) -> "Labelled":
        sets = [pictures(style, folder, split, DEVICE) for style in STYLES]
        encode, decode = load_autoencoder(device=DEVICE)
        images = torch.cat([s.images for s in sets])
        with torch.no_grad():
            again = torch.cat([
                decode(encode(part.float() / 255)).clamp(0, 1).mul(255).round().to(torch.uint8)
                for part in images.split(120)
            ])  # fmt: skip
        named = ("object", "background", "hand")
        labels = {name: torch.cat([getattr(s, name) for s in sets]).repeat(2) for name in named}
        labels["style"] = torch.arange(len(sets), device=DEVICE).repeat_interleave(len(sets[0].images)).repeat(2)
        return Labelled(torch.cat([images, again]), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(0)

    seen = Labelled.of(args.cache, "train")
    judge = Judge().to(DEVICE)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(seen.images), (BATCH,), generator=generator, device=DEVICE)
        logits = judge.logits(augmented(seen.images[rows].float() / 255, generator))
        return sum(F.cross_entropy(logits[name], seen.labels[name][rows], label_smoothing=0.05) for name in logits)

    train("judge", {"judge": judge}, loss_of, steps=args.steps, lr=2e-3, state=args.cache / "judge.pt", seed=3)
    held_out = Labelled.of(args.cache, "held out")
    logits, features = {name: [] for name in judge.heads}, []
    with torch.no_grad():
        for part in held_out.images.split(240):
            for name, values in judge.logits(part.float() / 255).items():
                logits[name].append(values)
            features.append(judge(part.float() / 255))
    seen_as = {name: torch.cat(parts).argmax(1) for name, parts in logits.items()}
    found = {name: (seen_as[name] == held_out.labels[name]).float().mean().item() for name in seen_as}
    print(f"right on held-out pictures: {found}")
    decoded = torch.cat(features)[len(held_out.images) // 2 :]
    judge.mean.copy_(decoded.mean(0))
    judge.deviation.copy_(decoded.std(0))
    decoded = (decoded - judge.mean) / judge.deviation
    halves = dict(zip(STYLES, decoded.half().cpu().chunk(2), strict=True))
    save_file({style: half[::3].contiguous() for style, half in halves.items()}, args.out.with_name(REFERENCE.name))
    save_file({key: value.half().contiguous().cpu() for key, value in judge.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
