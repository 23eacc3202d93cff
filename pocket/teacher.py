"""The pocket teacher: an epsilon-prediction UNet with classifier-free guidance, and the word table of its prompts.

`torchrun --nproc-per-node 2 -m pocket.teacher` trains it on the colour pictures' latents.
"""

import argparse
import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcm_core.distill.losses import noised
from lcm_core.schedule import NoiseSchedule

from .autoencoder import load_autoencoder
from .data import BACKGROUNDS, CAPTIONS, OBJECTS, WORDS, Pictures, caption_words, pictures
from .training import join_processes, train, update_average
from .unet import PocketUNet, Words

WEIGHTS = Path(__file__).parent / "weights" / "teacher.safetensors"
SCHEDULE = NoiseSchedule.scaled_linear()


class Captions:
    """Random captions for pictures, as word indices: a table of (kind, object, background) to two words."""

    def __init__(self, words: Words):
        kinds = torch.empty(len(CAPTIONS), len(OBJECTS), len(BACKGROUNDS), 2, dtype=torch.long)
        for k, kind in enumerate(CAPTIONS):
            for o in range(len(OBJECTS)):
                kinds[k, o] = words.index([caption_words(kind, o, b) for b in range(len(BACKGROUNDS))])
        self.table, self.shares = kinds, torch.tensor(list(CAPTIONS.values()))

    def draw(self, data: Pictures, rows: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 2) word indices for the pictures `rows`."""
        kind = torch.multinomial(self.shares, len(rows), replacement=True, generator=generator)
        return self.table[kind, data.object[rows], data.background[rows]]


def encode_pictures(data: Pictures) -> Tensor:
    """Latents (N, 4, 8, 8) of the pictures."""
    encode, _ = load_autoencoder()
    with torch.no_grad():
        return torch.cat([encode(part.float() / 255) for part in data.images.split(64)])


def epsilon_loss(unet: nn.Module, z: Tensor, context: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """The epsilon objective with min-SNR weighting, gamma = 5 (arXiv 2303.09556)."""
    t = torch.randint(0, SCHEDULE.steps, (len(z),), generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    output = unet(noised(z, noise, t, SCHEDULE), t, context, mask)
    snr = (SCHEDULE.alpha(t) / SCHEDULE.sigma(t)).square().float()
    return ((output - noise).square().mean((1, 2, 3)) * (5 / snr).clamp(max=1)).mean()


def initialised_unet() -> PocketUNet:
    """Residual branches and the output start at zero, so that the network starts as a linear map."""
    unet = PocketUNet()
    for name, parameter in unet.named_parameters():
        if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            nn.init.zeros_(parameter)
    return unet.to(memory_format=torch.channels_last)


def load_teacher(path: Path = WEIGHTS) -> tuple[PocketUNet, Words]:
    weights = load_file(path)
    unet, words = PocketUNet(), Words(WORDS)
    words.table.data = weights.pop("words.table").float()
    unet.load_state_dict({key: value.float() for key, value in weights.items()})
    return unet.requires_grad_(False).eval(), words.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    rank, processes = join_processes()
    torch.manual_seed(0)

    data = pictures("colour", args.cache)
    latents = encode_pictures(data)
    unet, words = initialised_unet(), Words(WORDS)
    average = copy.deepcopy(nn.ModuleList([unet, words])).requires_grad_(False)
    captions = Captions(words)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (32 // processes,), generator=generator)
        context, mask = words(captions.draw(data, rows, generator))
        return epsilon_loss(unet, latents[rows], context, mask, generator)

    def after_step() -> None:
        update_average(average, nn.ModuleList([unet, words]), 0.995)

    train("teacher", {"unet": unet, "words": words, "average": average}, loss_of, steps=args.steps, lr=1.2e-3,
          state=args.cache / "teacher.pt", after_step=after_step)  # fmt: skip
    if rank == 0:
        weights = {key: value.half().contiguous() for key, value in average[0].state_dict().items()}
        save_file(weights | {"words.table": average[1].table.half()}, args.out)


if __name__ == "__main__":
    main()
