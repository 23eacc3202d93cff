import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_core.files import output_path
from lcm_core.lora import LoRAVector, read_lora, write_lora

STATE = {"lora_unet_conv_in.lora_up.weight": torch.tensor([[1.0], [2.0]]), "lora_unet_conv_in.alpha": torch.tensor(1.0)}


def test_round_trip_with_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, STATE, {"ss_base_model": "sd15"})
    state, metadata = read_lora(path)
    assert metadata == {"format": "pt", "ss_base_model": "sd15"}
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)
    assert list(tmp_path.iterdir()) == [path]


def test_file_without_metadata_and_empty_file(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    assert read_lora(tmp_path / "a.safetensors")[1] == {}
    write_lora(tmp_path / "b.safetensors", {})
    assert read_lora(tmp_path / "b.safetensors") == ({}, {"format": "pt"})


def test_views_are_written_as_they_look(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    write_lora(tmp_path / "a.safetensors", {"x": base.T, "y": base[:, 1]})
    state = load_file(tmp_path / "a.safetensors")
    assert torch.equal(state["x"], base.T)
    assert torch.equal(state["y"], base[:, 1])


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_is_refused_unread(tmp_path, name, zipped):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return marker.touch, ()

    path = tmp_path / name
    if zipped:
        torch.save(STATE, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is a pickle, which can run code.*only safetensors is read"):
        read_lora(path)
    assert not marker.exists()


def test_safetensors_under_another_name_is_read(tmp_path):
    path = tmp_path / "a.bin"
    save_file(STATE, path)
    assert read_lora(path)[0].keys() == STATE.keys()


@pytest.mark.parametrize("keep", [0, 5, 9, 60, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    write_lora(path, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.safetensors.*download or copy it again"):
        read_lora(path)


def test_web_page_in_place_of_a_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="is not a safetensors file .*<!DOCTYP"):
        read_lora(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="the folder .*nowhere does not exist"):
        write_lora(tmp_path / "nowhere" / "a.safetensors", STATE)


def test_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_lora(path, STATE)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_lora(path, {"x": torch.zeros(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("metadata", [{"rank": 4}, {"tags": ["a"]}, {3: "x"}])
def test_metadata_is_text(tmp_path, metadata):
    with pytest.raises(ValueError, match="safetensors holds text only"):
        write_lora(tmp_path / "a.safetensors", STATE, metadata)
    assert not list(tmp_path.iterdir())


def test_only_safetensors_is_written(tmp_path):
    with pytest.raises(ValueError, match="suffix '.pt'; a LoRA is written as .safetensors only"):
        write_lora(tmp_path / "a.pt", STATE)


def test_peft_folder_brings_its_alpha(tmp_path):
    module = "base_model.model.conv_in"
    state = {f"{module}.lora_A.weight": torch.ones(2, 3), f"{module}.lora_B.weight": torch.ones(4, 2)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    vector = LoRAVector.load(tmp_path / "adapter_model.safetensors")
    assert vector.modules["unet.conv_in"].alpha == 8
    assert torch.equal(vector.delta("unet.conv_in"), torch.full((4, 3), 8.0))


def test_load_names_the_file(tmp_path):
    save_file({"model.diffusion_model.conv.weight": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: .*model\.diffusion_model\.conv\.weight"):
        LoRAVector.load(tmp_path / "checkpoint.safetensors")


def lying_file(path, header, data=b"\0" * 16):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}},
        {"x": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}},
        {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"x": {"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [4]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "xy"},
        {"__metadata__": {"a": 1}, "x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        *(b"{}}", b"{", b"\xff\xfe", b"{\xff}", b"[]"),
    ],
)
def test_lying_header(tmp_path, header):
    path = tmp_path / "a.safetensors"
    lying_file(path, header)
    with pytest.raises(ValueError, match=r"a\.safetensors.*download or copy it again"):
        read_lora(path)


def test_header_longer_than_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match="download or copy it again"):
        read_lora(path)


BITS = {
    **{"F64": 64, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}


@pytest.mark.parametrize("kind", BITS)
def test_every_dtype_is_read_or_refused(tmp_path, kind):
    path, size = tmp_path / "a.safetensors", BITS[kind]
    down = {"dtype": kind, "shape": [2, 4], "data_offsets": [0, size]}
    up = {"dtype": kind, "shape": [4, 2], "data_offsets": [size, 2 * size]}
    lying_file(path, {"unet.a.lora_A.weight": down, "unet.a.lora_B.weight": up}, bytes(2 * size))
    if kind in list(BITS)[:6]:
        assert LoRAVector.load(path).norm() < 1e-30  # zeros, or 2^-127 in F8_E8M0
    else:
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            LoRAVector.load(path)


@pytest.mark.parametrize("name", ["a.safetensors", "sub/a.safetensors", "sub\\a.safetensors", "./a.safetensors", "..a"])
def test_output_path_stays_in_its_folder(tmp_path, name):
    path = output_path(tmp_path, name)
    assert path.is_relative_to(tmp_path)
    assert path.name in ("a.safetensors", "..a")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "sub/../../a", "sub\\..\\a", "/etc/a", "\\\\host\\a", "C:a", "C:\\a", "a\0b"]
)
def test_output_path_refuses(tmp_path, name):
    with pytest.raises(ValueError, match="is not a file name below"):
        output_path(tmp_path, name)


def test_output_path_refuses_links_that_lead_elsewhere(tmp_path):
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "inside").mkdir()
    (folder / "away").symlink_to(tmp_path)
    (folder / "a.safetensors").symlink_to(tmp_path / "b.safetensors")
    (folder / "near").symlink_to(folder / "inside")
    assert output_path(folder, "near/a.safetensors") == folder / "near" / "a.safetensors"
    for name in ("away/a.safetensors", "a.safetensors"):
        with pytest.raises(ValueError, match="is not a file name below"):
            output_path(folder, name)
