"""The pocket teacher: an epsilon-prediction UNet with classifier-free guidance, and the word table of its prompts.

`python -m pocket.teacher` trains it on the colour pictures' latents.
"""

import argparse
import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcm_core.schedule import NoiseSchedule

from .autoencoder import load_autoencoder
from .data import BACKGROUNDS, CAPTIONS, OBJECTS, WORDS, Pictures, caption_words, pictures
from .training import DEVICE, fast, processes, train, update_average
from .unet import PocketUNet, Words

WEIGHTS = Path(__file__).parent / "weights" / "teacher.safetensors"
SCHEDULE = NoiseSchedule.scaled_linear()
ALPHA, SIGMA = (of(torch.arange(SCHEDULE.steps)) for of in (SCHEDULE.alpha, SCHEDULE.sigma))
BATCH, STEPS, DECAY = 256, 16000, 0.999


class Captions:
    """Random captions for pictures, as word indices: a table of (kind, object, background) to two words."""

    def __init__(self, words: Words):
        kinds = torch.empty(len(CAPTIONS), len(OBJECTS), len(BACKGROUNDS), 2, dtype=torch.long)
        for k, kind in enumerate(CAPTIONS):
            for o in range(len(OBJECTS)):
                kinds[k, o] = words.index([caption_words(kind, o, b) for b in range(len(BACKGROUNDS))])
        self.table = kinds.to(words.table.device)
        self.shares = torch.tensor(list(CAPTIONS.values()), device=words.table.device)

    def draw(self, data: Pictures, rows: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 2) word indices for the pictures `rows`; all on the words' device."""
        kind = torch.multinomial(self.shares, len(rows), replacement=True, generator=generator)
        return self.table[kind, data.object[rows], data.background[rows]]


@torch.no_grad()
def encode_pictures(data: Pictures) -> Tensor:
    """Latents (N, 4, 16, 16) of the pictures, on their device."""
    encode, _ = load_autoencoder(device=data.images.device)
    return torch.cat([encode(part.float() / 255) for part in data.images.split(120)])


def epsilon_loss(network, z: Tensor, context: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """The epsilon objective with min-SNR weighting, gamma = 5 (arXiv 2303.09556)."""
    t = torch.randint(0, SCHEDULE.steps, (len(z),), generator=generator, device=z.device)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    alpha, sigma = (table.to(z.device, torch.float32)[t][:, None, None, None] for table in (ALPHA, SIGMA))
    output = network(alpha * z + sigma * noise, t, context, mask).float()
    weight = (5 * (sigma / alpha).square()).clamp(max=1).flatten()
    return ((output - noise).square().mean((1, 2, 3)) * weight).mean()


def initialised_unet() -> PocketUNet:
    """Residual branches and the output start at zero, so that the network starts as a linear map."""
    unet = PocketUNet()
    for name, parameter in unet.named_parameters():
        if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            nn.init.zeros_(parameter)
    return unet.to(memory_format=torch.channels_last)


def load_teacher(path: Path = WEIGHTS, device: torch.device | str = "cpu") -> tuple[PocketUNet, Words]:
    weights = load_file(path)
    unet, words = PocketUNet(), Words(WORDS)
    words.table.data = weights.pop("words.table").float()
    unet.load_state_dict({key: value.float() for key, value in weights.items()})
    unet.to(device, memory_format=torch.channels_last)
    return unet.requires_grad_(False).eval(), words.to(device).requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    rank, count = processes()
    torch.manual_seed(0)

    data = pictures("colour", args.cache, device=DEVICE)
    latents = encode_pictures(data)
    unet, words = initialised_unet().to(DEVICE), Words(WORDS).to(DEVICE)
    live = nn.ModuleList([unet, words])
    average = copy.deepcopy(live).requires_grad_(False)
    captions, network = Captions(words), fast(unet)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH // count,), generator=generator, device=DEVICE)
        context, mask = words(captions.draw(data, rows, generator))
        return epsilon_loss(network, latents[rows], context, mask, generator)

    train("teacher", {"unet": unet, "words": words, "average": average}, loss_of, steps=args.steps, lr=1e-3,
          state=args.cache / "teacher.pt", after_step=lambda: update_average(average, live, DECAY))  # fmt: skip
    if rank == 0:
        weights = {key: value.half().contiguous().cpu() for key, value in average[0].state_dict().items()}
        save_file(weights | {"words.table": average[1].table.half().cpu()}, args.out)


if __name__ == "__main__":
    main()
