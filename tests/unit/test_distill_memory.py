"""The memory of a training: what is estimated against what a training has, and what makes it less."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from lcm_core.distill import LCM_TARGETS, DistillConfig, FullWeights, checkpointed, distill, inject_lora
from lcm_core.distill.memory import LiveBytes, bytes_of, estimate, most_bytes
from lcm_core.distill.storage import KIND, Float8Conv2d, Float8Linear, store_in_float8
from lcm_core.schedule import NoiseSchedule

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEDULE = NoiseSchedule.scaled_linear()
CONFIG = DistillConfig(steps=2, omega=(1.0, 2.0))
ROWS, SIDE = 4, 16


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(False)  # fmt: skip


def model_of(network):
    return lambda x, t, cond, omega: network(x, t, *cond).sample


def batch(rows=ROWS):
    torch.manual_seed(1)
    cond, uncond = torch.randn(2, rows, 7, 16)
    return torch.randn(rows, 4, SIDE, SIDE), (cond,), (uncond,)


CASES = {
    "LoRA": (CONFIG, {}),
    "checkpointed": (CONFIG, {"checkpointing": True}),
    "two averages, Lion, in parts": (
        replace(CONFIG, target_decay=0.9, ema_decay=0.9, optimizer="lion", accumulate=2),
        {},
    ),
    "all weights": (replace(CONFIG, target_decay=0.95), {"full": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_what_a_training_has(case):
    """Within 10% of the most bytes that tensors have in two steps: the frozen weights and what the training adds."""
    config, options = CASES[case]
    network = unet()
    weights = FullWeights(network) if options.get("full") else inject_lora(network, LCM_TARGETS, 4)
    model, data = model_of(network), batch()
    with checkpointed(network) if options.get("checkpointing") else torch.enable_grad():
        told = estimate(model, weights, batch(2), config, ROWS, schedule=SCHEDULE)
        assert all(p.grad is None for p in weights.parameters())
        before = bytes_of([*weights.frozen().values(), *weights.parameters()])
        added = most_bytes(lambda: list(distill(model, weights, lambda step: data, config, schedule=SCHEDULE)))
    assert told.total == pytest.approx(before + added, rel=0.1)


def test_checkpointing_and_parts_need_less_of_a_step():
    network = unet()
    weights = inject_lora(network, LCM_TARGETS, 4)

    def step(config=CONFIG):
        return estimate(model_of(network), weights, batch(2), config, 16, schedule=SCHEDULE).step

    plain = step()
    assert step(replace(CONFIG, accumulate=4)) < 0.4 * plain
    with checkpointed(network):
        assert step() < 0.6 * plain
    with pytest.raises(ValueError, match="one row; give at least two"):
        estimate(model_of(network), weights, batch(1), CONFIG, 4, schedule=SCHEDULE)


def test_live_bytes_are_those_of_tensors_that_live():
    kept = []

    def work():
        a = torch.zeros(1000)
        b = a.view(10, 100).add_(1) + 1
        del a
        kept.append(b.half())
        return torch.zeros(100)

    with LiveBytes() as live:
        work()
    assert (live.most, live.now) == (8000, 2000)


def wide(layers, network):
    """The network with the stored layers' weights made wide for good."""
    for name, layer in layers.items():
        place = network.get_submodule(name)
        place.weight.copy_(layer.weight)
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float8_storage_is_the_network_with_rounded_weights(dtype):
    """Output, the adapter's gradients, and a weight that is off by a 16th at most; a quarter or a half of the bytes."""
    stored, plain = unet().to(dtype), unet().to(dtype)
    before = bytes_of(stored.parameters())
    blocks = sum(p.numel() for name, p in stored.named_parameters() if ".resnets." in name or "transformer_b" in name)
    count = store_in_float8(stored)
    layers = {name: m for name, m in stored.named_modules() if isinstance(m, Float8Linear | Float8Conv2d)}
    assert len(layers) == count > 30 and {type(m) for m in layers.values()} == {Float8Linear, Float8Conv2d}
    for name, layer in layers.items():
        weight = plain.get_submodule(name).weight.float()
        off = (layer.weight.float() - weight).abs()
        largest = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1))
        assert (off <= weight.abs() / 16 + largest / 28672 + weight.abs() * torch.finfo(dtype).eps).all()
        assert layer.codes.dtype == KIND and layer.weight.dtype == dtype
    after = bytes_of([*stored.parameters(), *stored.buffers()])
    assert before - after > 0.9 * blocks * (dtype.itemsize - 1) - 4096
    wide(layers, plain)
    outputs, gradients = [], []
    z, cond, _ = batch(2)
    for network in (stored, plain):
        torch.manual_seed(3)
        weights = inject_lora(network, LCM_TARGETS, 4)
        for up in weights.up:
            torch.nn.init.normal_(up, std=0.1)
        output = model_of(network)(z.to(dtype), torch.tensor([500, 100]), (cond[0].to(dtype),), None)
        outputs.append(output)
        gradients.append(torch.autograd.grad(output.float().square().mean(), list(weights.parameters())))
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.02}
    torch.testing.assert_close(*outputs, **tolerance)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= (1e-4 if dtype == torch.float32 else 0.1) * theirs.norm() + 1e-6
    assert stored.dtype == dtype


def test_the_graph_keeps_no_wide_weight():
    """The activations of a batch of one are small beside the weights, so wide weights would show."""
    peaks = {}
    for kind in ("plain", "stored"):
        network = unet()
        if kind == "stored":
            store_in_float8(network)
        weights = inject_lora(network, LCM_TARGETS, 4)
        peaks[kind] = estimate(model_of(network), weights, batch(2), CONFIG, 1, schedule=SCHEDULE)
    assert peaks["stored"].frozen < 0.4 * peaks["plain"].frozen
    assert peaks["stored"].step < peaks["plain"].step + 0.3 * peaks["plain"].frozen


def test_weights_that_are_trained_and_networks_without_blocks_are_refused():
    with pytest.raises(ValueError, match="float8 is for frozen ones"):
        store_in_float8(unet().requires_grad_(True))
    with pytest.raises(ValueError, match="no list named"):
        store_in_float8(torch.nn.Sequential(torch.nn.Linear(2, 2)))
