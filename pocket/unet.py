"""The pocket UNet: Stable Diffusion 1.5's block graph with two resolutions, at half the host's width.

The module names are SD's own (LDM), so its weights and its LoRAs carry the names that every SD1.5 tool knows. Attention
stands at the lower resolution only. It trains at 160 channels; the host's SD1.5 loader wants 320, and
`host_state_dict` zero-pads. Those names count two residual blocks a resolution on the way down and three on the way
up; here one and two are trained, and the host gets blocks that pass their input on in place of the others. The padding
is exact:

- GroupNorm: the host's 32 groups hold 10 channels (20 after a skip is concatenated), here 16 groups hold as many.
- attention: 4 of the host's 8 heads of 40 are used; a head of zeros adds nothing.
- LayerNorm is the one layer that sees the padding: its mean and variance run over 320 channels, most of them zero.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

WIDTH, HOST_WIDTH = 160, 320
HEAD = 40
GROUPS = WIDTH // 10
CONTEXT = 768
TOKENS = 77


class PaddedLayerNorm(nn.Module):
    """LayerNorm over HOST_WIDTH channels of which only the first WIDTH are stored and the rest are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        mean = x.sum(-1, keepdim=True) / HOST_WIDTH
        variance = x.square().sum(-1, keepdim=True) / HOST_WIDTH - mean.square()
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class ResBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, WIDTH, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, WIDTH), nn.SiLU(), nn.Identity(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == WIDTH else nn.Conv2d(channels, WIDTH, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, context: int = WIDTH):
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            rearrange(t, "b n (h d) -> b h n d", d=HEAD)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class GEGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 8 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(), Attention(CONTEXT), FeedForward()
        self.norm1, self.norm2, self.norm3 = PaddedLayerNorm(), PaddedLayerNorm(), PaddedLayerNorm()

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, WIDTH, eps=1e-6)
        self.proj_in = nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])
        self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        height = x.shape[2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, context, mask)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height))


def timestep_embedding(t: Tensor) -> Tensor:
    """Sinusoids of the timestep, cosines first: (B,) -> (B, HOST_WIDTH)."""
    half = HOST_WIDTH // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Downsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


# The blocks that only the host has, and their input channels there; on the way up half of them are a skip's.
PASSING = {"input_blocks.2.0": 320, "input_blocks.5.0": 320, "output_blocks.0.0": 640, "output_blocks.3.0": 640}


def blocks(layers: dict[str, list[nn.Module]]) -> nn.ModuleDict:
    return nn.ModuleDict({index: nn.ModuleList(block) for index, block in layers.items()})


class PocketUNet(nn.Module):
    """epsilon = unet(x, t, context, mask) with x (B, 4, H, W), t (B,), and `Words`' context and mask; H and W even.

    `guidance` (B, HOST_WIDTH) is what a full LCM's `cond_proj` adds to the timestep embedding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(
            nn.Linear(HOST_WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4 * WIDTH)
        )
        self.input_blocks = blocks({
            "0": [nn.Conv2d(4, WIDTH, 3, padding=1)], "1": [ResBlock(WIDTH)], "3": [Downsample()],
            "4": [ResBlock(WIDTH), SpatialTransformer()],
        })  # fmt: skip
        self.middle_block = nn.ModuleList([ResBlock(WIDTH), SpatialTransformer(), ResBlock(WIDTH)])
        self.output_blocks = blocks({
            "1": [ResBlock(2 * WIDTH), SpatialTransformer()],
            "2": [ResBlock(2 * WIDTH), SpatialTransformer(), Upsample()],
            "4": [ResBlock(2 * WIDTH)], "5": [ResBlock(2 * WIDTH)],
        })  # fmt: skip
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 4, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, mask: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        embedded = timestep_embedding(t)
        emb = self.time_embed(embedded if guidance is None else embedded + guidance)

        def run(block: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in block:
                if isinstance(layer, ResBlock):
                    h = layer(h, emb)
                elif isinstance(layer, SpatialTransformer):
                    h = layer(h, context, mask)
                else:
                    h = layer(h)
            return h

        h, skips = x, []
        for block in self.input_blocks.values():
            h = run(block, h)
            skips.append(h)
        h = run(self.middle_block, h)
        for block in self.output_blocks.values():
            h = run(block, torch.cat([h, skips.pop()], dim=1))
        return self.out(h)


class Words(nn.Module):
    """The pocket text encoder: a bag of words, as the host's CLIP-L graph computes it.

    Positions and every other layer of CLIP are zero, so a word's vector is the final LayerNorm of its token row, and
    all tokens without a trained row are the zero vector. In place of 77 - n equal zero tokens, one stands with an
    attention bias of log(77 - n).
    """

    def __init__(self, words: tuple[str, ...]):
        super().__init__()
        self.words = words
        self.table = nn.Parameter(torch.randn(len(words), CONTEXT))

    def index(self, prompts: list[list[str]]) -> Tensor:
        """Word lists to (B, 2) indices, len(words) where there is no word."""
        index = torch.full((len(prompts), 2), len(self.words), device=self.table.device)
        for row, words in enumerate(prompts):
            for column, word in enumerate(words):
                index[row, column] = self.words.index(word)
        return index

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2) indices to context (B, 3, 768) and attention mask (B, 1, 1, 3)."""
        rows = F.layer_norm(self.table, (CONTEXT,))
        rows = torch.cat([rows, rows.new_zeros(1, CONTEXT)])
        context = F.pad(rows[index], (0, 0, 0, 1))
        absent = index == len(self.words)
        zeros = torch.log(TOKENS - (~absent).sum(1, keepdim=True).float())
        mask = torch.cat([torch.zeros_like(zeros).expand(index.shape).masked_fill(absent, -torch.inf), zeros], dim=1)
        return context, mask[:, None, None, :]


def pad_axis(tensor: Tensor, axis: int, wanted: int, parts: int = 1) -> Tensor:
    """Zero-pad each of `parts` equal runs along an axis, so that the axis becomes `wanted` long."""
    runs = tensor.chunk(parts, dim=axis)
    extra = wanted // parts - runs[0].shape[axis]
    return torch.cat([F.pad(run, (0, 0) * (tensor.ndim - 1 - axis) + (0, extra)) for run in runs], dim=axis)


@cache
def host_shapes() -> dict[str, tuple[tuple[int, ...], tuple[int, int]]]:
    """For each weight: its shape in the host, and into how many runs its (output, input) axes are split.

    A GEGLU projection holds value and gate, and a concatenated skip holds two feature maps: each half is padded apart.
    """
    with torch.device("meta"):
        narrow = PocketUNet()
    shapes = {}
    for name, parameter in narrow.named_parameters():
        halves_in = name.startswith("output_blocks") and any(k in name for k in (".in_layers.2", ".skip_connection"))
        norm_of_skip = name.startswith("output_blocks") and ".in_layers.0" in name
        parts = (2 if ".ff.net.0.proj" in name or norm_of_skip else 1, 2 if halves_in else 1)
        kept = (4, CONTEXT) if name != "time_embed.0.weight" else (HOST_WIDTH,)
        shape = tuple(n if n in kept else n * HOST_WIDTH // WIDTH for n in parameter.shape[:2])
        shapes[name] = (shape + tuple(parameter.shape[2:]), parts)
    return shapes


def passing_blocks() -> dict[str, Tensor]:
    """Weights of PASSING: a residual branch of zeros, and a shortcut that leaves a concatenated skip out."""
    weights = {}
    for block, channels in PASSING.items():
        shapes = {
            "in_layers.0": (channels,), "in_layers.2": (HOST_WIDTH, channels, 3, 3),
            "emb_layers.1": (HOST_WIDTH, 4 * HOST_WIDTH), "out_layers.0": (HOST_WIDTH,),
            "out_layers.3": (HOST_WIDTH, HOST_WIDTH, 3, 3),
        }  # fmt: skip
        weights |= {f"{block}.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
        weights |= {f"{block}.{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
        if channels > HOST_WIDTH:
            weights[f"{block}.skip_connection.weight"] = torch.eye(HOST_WIDTH, channels)[..., None, None]
            weights[f"{block}.skip_connection.bias"] = torch.zeros(HOST_WIDTH)
    return weights


def host_state_dict(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights at the host's width (names without prefix), float32, and those of the blocks that pass on."""
    padded = passing_blocks()
    for name, (shape, parts) in host_shapes().items():
        tensor = narrow[name].float()
        for axis in range(min(2, tensor.ndim)):
            tensor = pad_axis(tensor, axis, shape[axis], parts[axis])
        padded[name] = tensor
    return padded


def host_factors(module: str, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """LoRA factors (down (r, in, ...), up (out, r, ...)) of a module, padded to the host's width."""
    shape, parts = host_shapes()[f"{module}.weight"]
    return pad_axis(down, 1, shape[1], parts[1]), pad_axis(up, 0, shape[0], parts[0])
