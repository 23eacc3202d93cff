"""What each kind of LyCORIS adds to a weight, against LyCORIS's own modules; its files, read as it saves them."""

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

from lcm_core.lora.file import LoRAFile
from lcm_core.lora.kinds import change, sizes_of

NAME = "lora_unet_mid_block_resnets_0_conv1"
LAYERS = {
    "linear": lambda: torch.nn.Linear(48, 64),
    "1x1": lambda: torch.nn.Conv2d(48, 64, 1),
    "conv1d": lambda: torch.nn.Conv1d(48, 64, 3),
    "conv2d": lambda: torch.nn.Conv2d(48, 64, 3),
    "conv3d": lambda: torch.nn.Conv3d(48, 64, (2, 3, 3)),
}
TUCKER, DORA, PER_INPUT = {"use_tucker": True}, {"weight_decompose": True}, {"wd_on_out": False}
# LyCORIS's merge of LoHa and LoKr multiplies by alpha/rank twice, so that is 1 for these; the other tests vary it.
KINDS = [
    (LoConModule, 1.5, [{}, TUCKER, DORA, {**TUCKER, **DORA}, {**DORA, **PER_INPUT}, {"rs_lora": True}]),
    (LohaModule, 3, [{}, TUCKER, DORA, {**TUCKER, **DORA, **PER_INPUT}]),
    (LokrModule, 3, [{}, TUCKER, DORA, {"decompose_both": True, **TUCKER, **DORA}, {"full_matrix": True},
                     {"unbalanced_factorization": True}, {"decompose_both": True, "factor": 8}]),
    (DiagOFTModule, 1, [{}, {"rescaled": True}, {"constraint": 0.01}, {"constraint": 0.01, "rescaled": True}]),
    (ButterflyOFTModule, 1, [{}, {"rescaled": True}, {"constraint": 0.01, "rescaled": True}]),
    (GLoRAModule, 1.5, [{}, TUCKER]),
]  # fmt: skip
CASES = [(kind, alpha, options) for kind, alpha, several in KINDS for options in several]


def trained(kind, layer, alpha, options):
    """(the layer's weight, what LyCORIS saves of a module with random values, the weight that it merges)."""
    torch.manual_seed(0)
    layer.requires_grad_(False)
    module = kind(
        NAME, layer, 1.0, lora_dim=4 if kind in (DiagOFTModule, ButterflyOFTModule) else 3, alpha=alpha, **options
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        state = {f"{NAME}.{key}": value.clone() for key, value in module.state_dict().items()}
        merged = module.get_merged_weight(1.0, layer.weight.shape)[0]
    return layer.weight.detach(), state, merged


def label(case):
    kind, _, options = case
    return " ".join([kind.name, *options])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_effect_is_lycoriss(case, layer):
    weight, state, merged = trained(case[0], LAYERS[layer](), *case[1:])
    native = LoRAFile.of(state).native()
    (module,) = LoRAFile.of(native).modules
    (size,) = sizes_of(module).values()
    assert all(found in (None, wanted) for found, wanted in zip(size, weight.flatten(1).shape, strict=True))
    found = change(module, weight)
    assert found.shape == weight.shape
    expected = merged - weight
    assert float((found - expected).norm()) < 2e-5 * float(expected.norm())


@pytest.mark.parametrize("size", [48, 64])
def test_glora_of_older_lycoris(size):
    """Its factors have each other's names; of a square weight only the rank tells."""
    weight, state, merged = trained(GLoRAModule, torch.nn.Linear(48, size), 1.5, {})
    swapped = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {NAME + "." + ".".join([swapped.get(role, role), *rest]): t for key, t in state.items()
           for role, *rest in [key.removeprefix(f"{NAME}.").split(".")]}  # fmt: skip
    (module,) = LoRAFile.of(LoRAFile.of(old).native()).modules
    assert set(sizes_of(module).values()) == {(size, 48)}
    torch.testing.assert_close(weight + change(module, weight), merged)
