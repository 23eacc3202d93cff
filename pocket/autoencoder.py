"""The pocket autoencoder: the TAESD graph at 16/32/64/64 channels, zero-padded to 64 for the host.

Pictures are (B, 3, 128, 128) in [0, 1], latents (B, 4, 16, 16) of about unit variance. `python -m pocket.autoencoder`
trains it.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .data import STYLES, pictures
from .training import DEVICE, processes, train

WIDTHS = (16, 32, 64, 64)  # channels at 128, 64, 32 and 16 pixels
HOST_WIDTH = 64
WEIGHTS = Path(__file__).parent / "weights" / "autoencoder.safetensors"
BATCH, STEPS, DECODER_STEPS = 48, 6000, 5000


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def encoder(widths: tuple[int, int, int, int] = WIDTHS) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), Block(widths[0])]
    for wide, narrow in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(wide, narrow, 3, stride=2, padding=1, bias=False), *(Block(narrow) for _ in range(3))]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 4, 3, padding=1))


def decoder(widths: tuple[int, int, int, int] = WIDTHS) -> nn.Sequential:
    up = widths[::-1]
    layers: list[nn.Module] = [Clamp(), nn.Conv2d(4, up[0], 3, padding=1), nn.ReLU()]
    for wide, narrow in zip(up, up[1:], strict=False):
        layers += [*(Block(wide) for _ in range(3)), nn.Upsample(scale_factor=2)]
        layers += [nn.Conv2d(wide, narrow, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(up[-1]), nn.Conv2d(up[-1], 3, 3, padding=1))


def initialise(network: nn.Sequential) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Block):
            module.conv[-1].weight.data.mul_(0.2)
    network[-1].weight.data.mul_(0.5)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the pixels and of their differences: the second keeps outlines sharp."""
    across = (output.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
    down = (output.diff(dim=-2) - target.diff(dim=-2)).abs().mean()
    return (output - target).abs().mean() + 0.5 * (across + down)


def pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zero-pad every axis at its end."""
    missing = [wanted - size for size, wanted in zip(tensor.shape, shape, strict=True)]
    return F.pad(tensor, [n for axis in reversed(missing) for n in (0, axis)])


def host_state_dict(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The host's autoencoder weights: `taesd_encoder.*` and `taesd_decoder.*`, 64 channels everywhere.

    Channels past the trained ones are zero in and zero out, so the padding changes nothing.
    """
    wide = (HOST_WIDTH,) * 4
    shapes = {f"taesd_encoder.{k}": v.shape for k, v in encoder(wide).state_dict().items()}
    shapes |= {f"taesd_decoder.{k}": v.shape for k, v in decoder(wide).state_dict().items()}
    padded = {key: pad(narrow[key].float(), tuple(shape)) for key, shape in shapes.items()}
    return padded | {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}


def load_autoencoder(path: Path = WEIGHTS, device: torch.device | str = "cpu") -> tuple[nn.Sequential, nn.Sequential]:
    weights = load_file(path)
    networks = encoder(), decoder()
    for network, prefix in zip(networks, ("taesd_encoder.", "taesd_decoder."), strict=True):
        network.load_state_dict({k[len(prefix) :]: v.float() for k, v in weights.items() if k.startswith(prefix)})
        network.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
    return networks


def whiten(encode: nn.Sequential, decode: nn.Sequential, images: Tensor) -> None:
    """Fold each latent channel's mean and deviation into the last encoder layer and (but for its clamp) the decoder."""
    with torch.no_grad():
        z = encode(images)
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        encode[-1].weight /= std[:, None, None, None]
        encode[-1].bias.sub_(mean).div_(std)
        decode[1].bias += torch.einsum("oihw,i->o", decode[1].weight, mean)
        decode[1].weight *= std[None, :, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of both halves")
    parser.add_argument("--decoder-steps", type=int, default=DECODER_STEPS, help="of the decoder alone, after them")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    rank, count = processes()
    torch.manual_seed(0)

    images = torch.cat([pictures(style, args.cache, device=DEVICE).images for style in STYLES])
    encode, decode = encoder(), decoder()
    for network in (encode, decode):
        initialise(network)
        network.to(DEVICE, memory_format=torch.channels_last)

    def batch(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (BATCH // count,), generator=generator, device=DEVICE)
        return (images[rows].float() / 255).contiguous(memory_format=torch.channels_last)

    def decoded(z: Tensor, generator: torch.Generator, noise: float) -> Tensor:
        return decode(z + noise * torch.randn(z.shape, generator=generator, device=DEVICE)).float()

    def joint_loss(generator: torch.Generator) -> Tensor:
        x = batch(generator)
        z = encode(x).float()
        spread = (z.mean() ** 2 + (z.var() - 1) ** 2) * 0.01
        return reconstruction_loss(decoded(z, generator, 0.05), x) + spread

    def decoder_loss(generator: torch.Generator) -> Tensor:
        x = batch(generator)
        with torch.no_grad():
            z = encode(x)
        return reconstruction_loss(decoded(z, generator, 0.03), x)

    train("autoencoder", {"encoder": encode, "decoder": decode}, joint_loss, steps=args.steps, lr=2e-3,
          state=args.cache / "autoencoder.pt")  # fmt: skip
    held_out = torch.cat([pictures(style, args.cache, "held out", DEVICE).images for style in STYLES])
    whiten(encode, decode, held_out[::4].float() / 255)
    encode.requires_grad_(False)
    train("decoder", {"decoder": decode}, decoder_loss, steps=args.decoder_steps, lr=1.5e-3,
          state=args.cache / "decoder.pt", seed=1)  # fmt: skip
    if rank > 0:
        return
    with torch.no_grad():
        parts = [part.float() / 255 for part in held_out.split(240)]
        error = torch.stack([F.mse_loss(decode(encode(x)).clamp(0, 1), x) for x in parts]).mean()
    psnr = f"{-10 * error.log10():.2f}"
    print(f"PSNR {psnr} dB over {len(held_out)} pictures that were not trained on")
    weights = {f"taesd_encoder.{k}": v.half().contiguous() for k, v in encode.cpu().state_dict().items()}
    weights |= {f"taesd_decoder.{k}": v.half().contiguous() for k, v in decode.cpu().state_dict().items()}
    save_file(weights, args.out, metadata={"psnr_db": psnr})


if __name__ == "__main__":
    main()
