"""What distillation trains: LoRA on diffusers' and SD's UNets, all weights, and gradient checkpointing of both."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lcm_core.distill import LCM_TARGETS, FullWeights, checkpointed, inject_lora
from pocket.unet import PocketUNet

XL = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SSD1B = {
    "transformer_layers_per_block": (1, 2, 4), "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    "mid_block_type": "UNetMidBlock2D",
}  # fmt: skip


class Tiny(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.to_q = nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.Linear(6, 4)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.requires_grad_(False)

    def forward(self, x):
        return self.to_q(torch.tanh(self.conv1(x)).movedim(1, 3))


X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pocket():
    torch.manual_seed(0)
    return PocketUNet().requires_grad_(False)


def pocket_inputs(batch=2):
    generator = torch.Generator().manual_seed(2)
    x, context = torch.randn(batch, 4, 4, 4, generator=generator), torch.randn(batch, 3, 768, generator=generator)
    return x, torch.full((batch,), 500), context, torch.zeros(batch, 1, 1, 3)


@pytest.mark.parametrize(
    ("config", "modules", "parameters"),
    [
        ({"cross_attention_dim": 768}, 278, 67_252_224),
        (XL | SSD1B, 423, 104_902_656),
        (XL | {"transformer_layers_per_block": (1, 2, 10)}, 788, 196_751_360),
    ],
    ids=["SD1.5", "SSD-1B", "SDXL"],
)
def test_targets_of_the_paper_give_its_parameters(config, modules, parameters):
    with torch.device("meta"):
        adapter = inject_lora(UNet2DConditionModel(**config), LCM_TARGETS, rank=64)
    assert len(adapter.names) == modules
    assert sum(p.numel() for p in adapter.parameters()) == parameters


def test_one_set_of_targets_fits_both_spellings(pocket):
    """SD's own (LDM) names are matched by what diffusers calls them."""
    adapter = inject_lora(pocket, ["conv2", "time_emb_proj", "to_out.0"], rank=2)
    adapter.remove()
    assert all(name.endswith(("out_layers.3", "emb_layers.1", "to_out.0")) for name in adapter.names)
    assert "unet.down_blocks.0.resnets.0.conv2" in adapter.vector().modules
    assert len(adapter.names) == 8 * 2 + 4 * 2


@pytest.mark.bits
def test_adapter_starts_as_nothing_and_switches_off():
    model = Tiny()
    plain, weights = model(X), [p.data_ptr() for p in model.parameters()]
    adapter = inject_lora(model, ["to_q", "conv1"], rank=2, alpha=1)
    assert torch.equal(model(X), plain)
    nn.init.ones_(adapter.up[0])
    assert not torch.allclose(model(X), plain)
    with adapter.using(None):
        assert torch.equal(model(X), plain)
    other = [p * 0 for p in adapter.parameters()]
    with adapter.using(other):
        assert torch.equal(model(X), plain)
    assert [p.data_ptr() for p in model.parameters()] == weights
    adapter.remove()
    assert torch.equal(model(X), plain)


def test_adapter_adds_the_delta_of_its_vector():
    model, merged = Tiny(), Tiny()
    adapter = inject_lora(model, ["to_q", "conv1"], rank=3, alpha=0.5)
    for up in adapter.up:
        nn.init.normal_(up)
    for name in ("conv1", "to_q"):
        merged.get_submodule(name).weight += adapter.vector().delta(name)
    torch.testing.assert_close(model(X), merged(X))
    adapter.average = [p * 2 for p in adapter.parameters()]
    torch.testing.assert_close(adapter.vector().delta("to_q"), 4 * (merged.to_q.weight - Tiny().to_q.weight))


def test_half_precision_weights_with_float32_factors():
    model = Tiny().to(torch.bfloat16)
    adapter = inject_lora(model, ["to_q", "conv1"], rank=2)
    with torch.autocast("cpu", torch.bfloat16):
        model(X).float().square().mean().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in adapter.parameters())
    assert adapter.up[1].grad.abs().max() > 0 and model.to_q.weight.grad is None


@pytest.mark.parametrize(
    ("targets", "rank", "said"),
    [
        (["nothing"], 4, "conv1, to_q"),
        (["to_q"], 0, "rank 0"),
        (["grouped"], 2, "grouped"),
        (["to_q", "conv1"], 5, r"rank 5 is more than to_q can have, 4 \(its weight is \(4, 6\)\)"),
    ],
)
def test_adapter_errors(targets, rank, said):
    with pytest.raises(ValueError, match=said):
        inject_lora(Tiny(), targets, rank)


def test_rank_is_clamped_on_request():
    adapter = inject_lora(Tiny(), ["to_q", "conv1"], 5, clamp=True)
    assert [len(down) for down in adapter.down] == [5, 4]
    assert adapter.alphas == [5, 4]


@pytest.mark.bits
def test_full_weights_keep_the_teacher_and_take_an_average():
    model, plain = Tiny(), Tiny()
    weights = FullWeights(model)
    with torch.no_grad():
        model.to_q.weight.mul_(2)
    average = [p.detach() * 0 for p in weights.parameters()]
    changed = model(X)
    with weights.using(None):
        assert torch.equal(model(X), plain(X))
    with weights.using(average), torch.no_grad():
        assert not model(X).any()
    assert torch.equal(model(X), changed)
    model(X).sum().backward()
    assert model.to_q.weight.grad is not None
    assert torch.equal(weights.weights()["to_q.weight"], 2 * plain.to_q.weight)
    weights.average = average
    assert weights.weights().keys() == dict(plain.named_parameters()).keys()
    assert not weights.weights()["to_q.weight"].any()


def gradients(model, parameters, inputs):
    """Output, gradients, and how many bytes the graph keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)
        output = getattr(output, "sample", output)
    return output, torch.autograd.grad(output.square().mean(), list(parameters)), sum(kept.values())


@pytest.mark.bits
@pytest.mark.parametrize("names", ["LDM", "diffusers"])
def test_checkpointed_blocks_give_the_same_gradients(pocket, names):
    torch.manual_seed(4)
    if names == "LDM":
        model, inputs, blocks = pocket, pocket_inputs(), 12
    else:
        model = UNet2DConditionModel(
            block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).requires_grad_(False)  # fmt: skip
        inputs, blocks = (torch.randn(2, 4, 16, 16), torch.full((2,), 500), torch.randn(2, 3, 8)), 12
    adapter = inject_lora(model, LCM_TARGETS, rank=2)
    for up in adapter.up:
        nn.init.normal_(up, std=0.1)
    output, plain, kept = gradients(model, adapter.parameters(), inputs)
    with checkpointed(model):
        wrapped = [module for module in model.modules() if "forward" in vars(module)]
        again, less, kept_less = gradients(model, adapter.parameters(), inputs)
    adapter.remove()
    assert len(wrapped) == blocks and not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(output, again)
    for a, b in zip(plain, less, strict=True):
        torch.testing.assert_close(a, b)
    assert kept_less < 0.5 * kept


def test_checkpointing_of_full_weights_and_of_no_blocks(pocket):
    model = copy.deepcopy(pocket)
    weights = FullWeights(model)
    _, plain, _ = gradients(model, weights.parameters(), pocket_inputs())
    with checkpointed(model):
        with weights.using(None), torch.no_grad():
            model(*pocket_inputs())
        _, less, _ = gradients(model, weights.parameters(), pocket_inputs())
    for a, b in zip(plain, less, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="conv1, to_q"), checkpointed(Tiny()):
        pass
