"""The judge: a small classifier of the data's pictures that says whether a picture shows what its prompt names.

It sees object, background and drawing style. Its features give the Fréchet distance between generated pictures and
the data. `python -m pocket.judge` trains it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .data import BACKGROUNDS, CATEGORIES, CATEGORY_OF, OBJECTS, STYLES, pictures
from .training import train

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
REFERENCE = WEIGHTS.with_name("judge_features.safetensors")  # of the data, by style: (288, 48) each
FEATURES = 48


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] to features (B, 48); heads to logits of object, background and style."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, wider in ((3, 24), (24, 48), (48, 96), (96, 96)):
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, FEATURES))
        sizes = {"object": len(OBJECTS), "background": len(BACKGROUNDS), "style": len(STYLES)}
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, size) for name, size in sizes.items()})

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images * 2 - 1)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        features = F.silu(self(images))
        return {name: head(features) for name, head in self.heads.items()}


def as_batch(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, 64, 64) in [0, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return batch if batch.shape[-1] == 64 else F.interpolate(batch, size=(64, 64), mode="area")


def load_judge(path: Path = WEIGHTS) -> Judge:
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return judge.requires_grad_(False).eval()


def right(judge: Judge, images: Tensor, prompts: list[str]) -> Tensor:
    """(B,) booleans: each of the prompt's words (category, object or background colour) is what the judge sees."""
    logits = judge.logits(images)
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


def style_share(judge: Judge, images: Tensor, style: str = "line") -> float:
    """Share of pictures (B, 3, 64, 64) that the judge takes for that drawing style."""
    return (judge.logits(images)["style"].argmax(1) == STYLES.index(style)).float().mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two feature sets (N, 48), each taken as a Gaussian (arXiv 1706.08500)."""
    a, b = a.double(), b.double()
    spread = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    trace = a.var(0).sum() + b.var(0).sum() - 2 * spread
    return ((a.mean(0) - b.mean(0)).square().sum() + trace).item()


def diversity(features: Tensor) -> tuple[float, float]:
    """(mean distance between two pictures of one prompt, its standard error), of features (P, N, 48) of P prompts.

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
    """Shifts up to 3 pixels, changes of brightness and a little noise, so that small flaws do not decide."""
    x = F.pad(images, (3, 3, 3, 3), mode="replicate")
    dy, dx = torch.randint(0, 7, (2,), generator=generator).tolist()
    x = x[:, :, dy : dy + 64, dx : dx + 64]
    scale = 1 + 0.1 * torch.randn(len(x), 3, 1, 1, generator=generator)
    return (x * scale + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(0)

    sets = [pictures(style, args.cache) for style in STYLES]
    images = torch.cat([s.images for s in sets])
    labels = {
        "object": torch.cat([s.object for s in sets]),
        "background": torch.cat([s.background for s in sets]),
        "style": torch.arange(len(sets)).repeat_interleave(len(sets[0].images)),
    }
    judge = Judge()

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (64,), generator=generator)
        logits = judge.logits(augmented(images[rows].float() / 255, generator))
        return sum(F.cross_entropy(logits[name], labels[name][rows], label_smoothing=0.05) for name in logits)

    train("judge", {"judge": judge}, loss_of, steps=args.steps, lr=2e-3, state=args.cache / "judge.pt", seed=3)
    with torch.no_grad():
        logits = judge.logits(images.float() / 255)
        features = [judge(s.images.float() / 255) for s in sets]
    print({name: (logits[name].argmax(1) == labels[name]).float().mean().item() for name in logits})
    save_file(dict(zip(STYLES, features, strict=True)), args.out.with_name(REFERENCE.name))
    save_file({key: value.half().contiguous() for key, value in judge.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
