import json
import os
import pickle
import signal
import socket
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_core.distill.data.folder import read_folder
from lcm_core.distill.pipeline import read_prompts
from lcm_core.files import output_path, read_text
from lcm_core.guidance import load_guidance_projection
from lcm_core.lora import LoRAVector, extract, read_lora, write_lora
from lcm_core.lora.record import file_record

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
    "name",
    ["", ".", "..", "../a", "sub/../../a", "sub\\..\\a", "/etc/a", "\\\\host\\a", "C:a", "C:\\a", "a\0b", "a\ud800"],
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


@pytest.fixture(params=["folder", "pipe", "link to a pipe", "socket", "device"])
def no_file(tmp_path, request, monkeypatch):
    """What is no regular file, under a LoRA's name. Reading the pipe would wait, the device would go on forever."""

    def waited(*_):
        raise TimeoutError

    monkeypatch.chdir(tmp_path)  # a socket's path may have 100 bytes
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, waited)
        signal.alarm(20)
        request.addfinalizer(lambda: signal.alarm(0))
    path = tmp_path / "adapter_model.safetensors"
    if request.param == "folder":
        path.mkdir()
        yield path, "a folder"
    elif not hasattr(os, "mkfifo"):
        pytest.skip("Windows has no such names")
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
            yield path, "a socket"
    elif request.param == "device":
        path.symlink_to("/dev/zero")
        yield path, "a device"
    else:
        os.mkfifo(tmp_path / "pipe" if "link" in request.param else path)
        if "link" in request.param:
            path.symlink_to(tmp_path / "pipe")
        yield path, "a pipe"


@pytest.mark.parametrize("read", [
    read_lora, file_record, read_text, read_prompts, load_guidance_projection, LoRAVector.load,
    lambda path: extract(path, path, 4),
])  # fmt: skip
def test_only_files_are_opened(no_file, read):
    path, kind = no_file
    with pytest.raises(ValueError, match=rf"adapter_model\.safetensors is {kind}, and only files are read"):
        read(path)


def test_a_config_that_is_no_file_is_refused(no_file):
    path, kind = no_file
    path.rename(path.with_name("adapter_config.json"))
    write_lora(path, STATE)
    with pytest.raises(ValueError, match=rf"adapter_config\.json is {kind}, and only files are read"):
        read_lora(path)


def test_text_is_read_as_utf8(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffein Bär\n\n zwei ".encode())
    assert read_prompts(path) == ["ein Bär", "zwei"]
    path.write_bytes("ein Bär".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.txt is no text in UTF-8 \(byte 5 is 228\); save it as UTF-8"):
        read_prompts(path)
    with path.open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=r"is longer than 67108864 bytes of text; give a smaller file"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["a*", "a?/b", "<a", "a>", "a|b", 'a"', "ab:c", "sub/a:b", "a\nb", "a\x7f"])
def test_output_path_refuses_characters_that_no_system_or_not_all_take(tmp_path, name):
    with pytest.raises(ValueError, match="which file names can't have; leave it out"):
        output_path(tmp_path, name)


@pytest.mark.parametrize("name", [
    *("CON", "nul.safetensors", "sub/aux/a", "Com1.tar.gz", "lpt\u00b2", "conout$", "prn .txt"),
    *("a.", "a ", "a./b", "sub /b", "...", " "),
])  # fmt: skip
def test_output_path_refuses_what_windows_takes_for_another(tmp_path, name):
    with pytest.raises(ValueError, match="is a device of Windows; choose another|ends in a dot or a space; choose an"):
        output_path(tmp_path, name)


@pytest.mark.parametrize("name", ["conny", "com10", "nullify.safetensors", ".hidden", "a b", "100%", "Bär~$[1]{2}'#&"])
def test_output_path_takes_what_only_looks_like_them(tmp_path, name):
    assert output_path(tmp_path, name) == tmp_path / name


def test_output_path_takes_what_the_suffix_mends(tmp_path):
    assert output_path(tmp_path, "v1.", "_00001_.safetensors") == tmp_path / "v1._00001_.safetensors"
    for name in ("", ".", "..", "a/.."):
        with pytest.raises(ValueError, match="is not a file name below"):
            output_path(tmp_path, name, "_00001_.safetensors")


@pytest.mark.parametrize("name, length", [
    ("a" * 255, None), ("ü" * 127, None), ("a/" * 499 + "b", None), ("a" * 256, 256), ("ü" * 128, 256),
    ("b" * 300 + "/a", 302), ("a/" * 2000, 4000), ("a/" * 500 + "b", 1001),
])  # fmt: skip
def test_output_path_bounds_lengths(tmp_path, name, length):
    if length is None:
        assert output_path(tmp_path, name).is_relative_to(tmp_path)
        return
    with pytest.raises(ValueError, match=rf"too long for a file name \({length} bytes\); give one of up to") as caught:
        output_path(tmp_path, name)
    assert len(str(caught.value)) < 400
    output_path(tmp_path, "a" * 200, "b" * 55)
    with pytest.raises(ValueError, match="give one of up to 200 bytes"):
        output_path(tmp_path, "a" * 201, "b" * 55)


def test_pictures_may_have_names_that_are_not_written(tmp_path):
    from PIL import Image

    for name in ("what?.png", "ab:c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    lines = [json.dumps({"file_name": name, "text": name}) for name in ("what?.png", "ab:c.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert sorted(read_folder(tmp_path).values()) == ["ab:c.png", "what?.png"]
