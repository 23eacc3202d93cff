"""What a PEFT file says, or leaves open, of how it was trained."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, LoraGAConfig, get_peft_model, preprocess_loraga
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda

from lcm_core.lora import LoRAVector, read_lora
from lcm_core.lora.file import LoRAFile

TARGETS = ["0", "2"]


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))


def train(model):
    """Changes every factor, as a training does."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))


def initialized(init):
    """A model with PEFT's adapter in it, and the base model that the adapter is for."""
    base = net()
    options = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS}
    data = torch.randn(32, 12, generator=torch.Generator().manual_seed(2))
    model = copy.deepcopy(base)
    if init == "corda":
        config = LoraConfig(**options, init_lora_weights=init, corda_config=CordaConfig(corda_method="kpm"))
        preprocess_corda(model, config, run_model=lambda: model(data))
    elif init == "lora_ga":
        config = LoraConfig(**options, init_lora_weights=init, lora_ga_config=LoraGAConfig())
        preprocess_loraga(model, config, train_step=lambda: model(data).square().mean().backward())
    else:
        config = LoraConfig(**options, init_lora_weights=init)
    return get_peft_model(model, config), base


CHANGING = ["pissa", "pissa_niter_2", "olora", "corda", "lora_ga"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", CHANGING)
def test_an_initialisation_that_changes_the_base_is_refused_and_its_conversion_read(tmp_path, init):
    model, base = initialized(init)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "untrained")
    model.peft_config["default"].init_lora_weights = init
    train(model)
    model.save_pretrained(tmp_path / "trained")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "untrained"))
    with pytest.raises(ValueError, match=f"init_lora_weights='{init}', which changed the base model too") as caught:
        LoRAVector.load(tmp_path / "trained" / "adapter_model.safetensors")
    assert "save_pretrained(folder, path_initial_model_for_weight_conversion=" in str(caught.value)
    with pytest.raises(ValueError, match="changed the base model too"):
        LoRAFile.of(*read_lora(tmp_path / "trained" / "adapter_model.safetensors")).native()
    vector = LoRAVector.load(tmp_path / "converted" / "adapter_model.safetensors")
    assert not vector.notes
    weights = dict(base.named_parameters())
    for name, merged in model.merge_and_unload().named_parameters():
        if name.endswith("weight"):
            torch.testing.assert_close(
                weights[name] + vector.delta(name.removesuffix(".weight")), merged, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_an_initialisation_that_leaves_the_base_is_read(tmp_path, init):
    model, base = initialized(init)
    train(model)
    model.save_pretrained(tmp_path)
    vector = LoRAVector.load(tmp_path / "adapter_model.safetensors")
    weights = dict(base.named_parameters())
    for name, merged in model.merge_and_unload().named_parameters():
        if name.endswith("weight"):
            torch.testing.assert_close(weights[name] + vector.delta(name.removesuffix(".weight")), merged)


@pytest.mark.parametrize("config", [
    {"init_lora_weights": "loftq"}, {"unet.init_lora_weights": "PiSSA"}, {"init_lora_weights": "corda"},
    {"kasa_config": {"beta": 1e-4}},
])  # fmt: skip
def test_other_ways_to_say_so(config):
    state = {"unet.conv_in.lora_A.weight": torch.ones(1, 4), "unet.conv_in.lora_B.weight": torch.ones(2, 1)}
    for read in (LoRAVector.from_state_dict, lambda *file: LoRAFile.of(*file).native()):
        with pytest.raises(ValueError, match="changed the base model too"):
            read(state, {"lora_adapter_metadata": json.dumps(config)})
    for fine in ({"init_lora_weights": "eva"}, {"kasa_config": None}, {"unet.init_lora_weights": True}):
        assert len(LoRAVector.from_state_dict(state, {"lora_adapter_metadata": json.dumps(fine)})) == 1


def test_a_peft_file_without_its_config_says_that_alpha_was_taken_to_be_the_rank(tmp_path):
    model, _ = initialized(False)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    assert LoRAVector.load(weights).notes == ()
    alone = tmp_path / "alone.safetensors"
    weights.rename(alone)
    vector = LoRAVector.load(alone)
    (note,) = vector.notes
    assert note.startswith("no alpha in the file for 2 modules (base_model.model.0 and 1 more); took alpha = rank")
    assert note.endswith("multiply the strength by alpha/rank, or put the file, as adapter_model.safetensors, into a "
                         "folder with its adapter_config.json")  # fmt: skip
    assert {factors.alpha for factors in vector.modules.values()} == {4.0}
    alone.rename(weights)
    torch.testing.assert_close(1.5 * vector.delta("0"), LoRAVector.load(weights).delta("0"))


FACTORS = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(3, 2)}
CONV_IN = {f"unet.conv_in.{role}": tensor for role, tensor in FACTORS.items()}
KOHYA = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(3, 2)}


@pytest.mark.parametrize("state, metadata, modules", [
    (CONV_IN, {}, 1),
    ({f"transformer.a.b.{role}": t for role, t in FACTORS.items()}, {"lora_adapter_metadata": '{"r": 2}'}, 1),
    (CONV_IN, {"lora_adapter_metadata": '{"lora_alpha": 3}'}, 0),
    (CONV_IN, {"lora_adapter_metadata": '{"unet.lora_alpha": 3}'}, 0),
    ({"unet.conv_in.alpha": torch.tensor(1.0)} | CONV_IN, {}, 0),
    ({f"lora_unet_conv_in.{role}": t for role, t in KOHYA.items()}, {}, 0),
    ({"unet.conv_in.diff": torch.ones(2, 2)}, {}, 0),
])  # fmt: skip
def test_where_the_doubt_is_real(state, metadata, modules):
    notes = LoRAVector.from_state_dict(state, metadata).notes
    assert len(notes) == (1 if modules else 0)
    assert all(f"for {modules} modules" in note for note in notes)


def test_our_own_peft_file_leaves_no_doubt(tmp_path):
    vector = LoRAVector.from_state_dict(CONV_IN)
    (2 * vector).save(tmp_path / "ours.safetensors", "peft")
    again = LoRAVector.load(tmp_path / "ours.safetensors")
    assert again.notes == () and torch.equal(again.delta("unet.conv_in"), 2 * vector.delta("unet.conv_in"))
    again.save(tmp_path / "kohya.safetensors")
    assert "lcm_lora.alpha" not in read_lora(tmp_path / "kohya.safetensors")[1]
    assert (2 * vector).notes == ()
