"""The pocket model's padding, assembly and judge: what its small weights compute is what the host computes."""

import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from pocket import assemble, autoencoder, unet
from pocket.data import CAPTIONS, OBJECTS, SIZE, WORDS, caption_words, in_paper
from pocket.judge import (
    as_batch,
    clarity,
    diversity,
    frechet_distance,
    jackknife,
    kernel_distance,
    load_judge,
    precision_recall,
    prompt_accuracy,
)
from pocket.unet import HOST_WIDTH, WIDTH, PaddedLayerNorm, PocketUNet, Words, host_state_dict, pad_axis


def test_padded_layer_norm_is_layer_norm_over_the_padding():
    norm = PaddedLayerNorm()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, WIDTH)
    missing = (0, HOST_WIDTH - WIDTH)
    expected = F.layer_norm(F.pad(x, missing), (HOST_WIDTH,), F.pad(norm.weight, missing), F.pad(norm.bias, missing))
    torch.testing.assert_close(norm(x), expected[..., :WIDTH])
    assert not expected[..., WIDTH:].any()


def test_pad_axis_pads_each_run():
    halves = pad_axis(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 1, 8, parts=2)
    assert halves.tolist() == [[1, 2, 0, 0, 3, 4, 0, 0]]
    assert pad_axis(torch.ones(1, 0), 1, 2).tolist() == [[0, 0]]


def test_diversity_is_the_mean_distance_of_pairs_with_the_jackknifes_error():
    features = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def mean(rows: torch.Tensor) -> float:
        return sum((a - b).norm().item() for a, b in itertools.combinations(rows, 2)) / math.comb(len(rows), 2)

    found, error = diversity(features)
    assert math.isclose(found, sum(map(mean, features)) / 3)
    kept = [[mean(torch.cat([rows[:i], rows[i + 1 :]])) for i in range(5)] for rows in features]
    squares = [4 / 5 * sum((each - sum(means) / 5) ** 2 for each in means) for means in kept]
    assert math.isclose(error, math.sqrt(sum(squares)) / 3)


def test_the_error_of_diversity_is_its_spread_over_draws():
    draws = torch.randn(400, 1, 12, 48, generator=torch.Generator().manual_seed(7))
    found, errors = torch.tensor([diversity(each) for each in draws]).unbind(1)
    assert 0.8 < errors.mean() / found.std() < 1.25


def test_host_weights_keep_every_value():
    torch.manual_seed(0)
    narrow = PocketUNet().state_dict()
    wide = host_state_dict(narrow)
    assert wide.keys() == narrow.keys() | unet.passing_blocks().keys()
    for name, tensor in ((name, wide[name]) for name in narrow):
        torch.testing.assert_close(tensor.double().sum(), narrow[name].double().sum(), rtol=0, atol=1e-6)
        assert tensor.count_nonzero() == narrow[name].count_nonzero()
    assert wide["output_blocks.0.0.in_layers.2.weight"].shape == (320, 640, 3, 3)
    assert wide["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)


def test_passing_blocks_pass_their_input_on():
    host, weights = unet.HOST_WIDTH, unet.passing_blocks()
    x = torch.randn(2, 2 * host, 4, 4)
    shortcut = F.conv2d(x, weights["output_blocks.3.0.skip_connection.weight"])
    assert torch.equal(shortcut, x[:, :host])
    ends = [name for name in weights if ".out_layers.3." in name]
    assert len(ends) == 2 * len(unet.PASSING)
    assert not any(weights[name].any() for name in ends)


def test_padded_factors_are_the_padded_delta():
    module = "output_blocks.1.0.in_layers.2"
    down, up = torch.randn(3, 2 * WIDTH, 3, 3), torch.randn(WIDTH, 3, 1, 1)
    wide_down, wide_up = unet.host_factors(module, down, up)
    delta = torch.einsum("orhw,rikl->oikl", up, down)
    shape, parts = unet.host_shapes()[f"{module}.weight"]
    expected = pad_axis(pad_axis(delta, 0, shape[0], parts[0]), 1, shape[1], parts[1])
    torch.testing.assert_close(torch.einsum("orhw,rikl->oikl", wide_up, wide_down), expected)


def test_padded_autoencoder_decodes_the_same():
    _, decode = autoencoder.load_autoencoder()
    padded = autoencoder.host_state_dict(load_file(autoencoder.WEIGHTS))
    wide = autoencoder.decoder((autoencoder.HOST_WIDTH,) * 4)
    wide.load_state_dict({k[len("taesd_decoder.") :]: v for k, v in padded.items() if k.startswith("taesd_decoder.")})
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(wide(z), decode(z), rtol=1e-4, atol=1e-5)


def test_words_ignore_order_and_count_the_zero_tokens():
    words = Words(WORDS)
    context, mask = words(words.index([["cat", "blue"], ["blue", "cat"], []]))
    torch.testing.assert_close(context[0, [1, 0]], context[1, :2])
    assert not context[:, 2].any()
    assert torch.exp(mask[:, 0, 0, 2]).round().tolist() == [75, 75, 77]
    assert mask[2, 0, 0, :2].tolist() == [-torch.inf, -torch.inf]


def test_captions():
    assert abs(sum(CAPTIONS.values()) - 1) < 1e-9
    cat = OBJECTS.index("cat")
    spoken = {kind: caption_words(kind, cat, 3) for kind in CAPTIONS}
    assert spoken["category colour"] == ["animal", "blue"]
    assert spoken["object"] == ["cat"]
    assert spoken[""] == []


def test_sparse_file_reads_back(tmp_path):
    tensors = {"a": torch.arange(5000.0), "zeros": (3, 4096), "half": torch.ones(2, 2).half(), "b": torch.tensor(2.5)}
    assemble.write_sparse(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert read["zeros"].shape == (3, 4096) and not read["zeros"].any()
    for name in ("a", "half", "b"):
        assert torch.equal(read[name], tensors[name])


def test_paper_has_four_tones_an_edge_and_a_shadow():
    drawing = torch.zeros(1, 4, SIZE, SIZE)
    drawing[:, 3, 40:80, 40:80] = 1
    drawing[:, :3, 40:80, 60:80] = 0.99
    paper = in_paper(drawing)
    dark, light = paper[0, :3, 60, 45], paper[0, :3, 60, 75]
    assert dark[0] > 3 * dark[1] and (light > 0.8).all()
    edge, shadow, nothing = paper[0, :, 60, 82], paper[0, :, 60, 84], paper[0, :, 10, 10]
    assert edge.tolist() == [1, 1, 1, 1]
    assert not shadow[:3].any() and 0 < shadow[3] < 0.5
    assert not nothing.any()


def test_judge_counts_words_it_knows():
    judge = load_judge()
    white = np.full((2, SIZE, SIZE, 3), 250, np.uint8)
    assert prompt_accuracy(judge, white, ["", "a big"]) == 1
    assert as_batch(white[:, ::2, ::2]).shape == (2, 3, SIZE, SIZE)


def test_clarity_falls_where_a_picture_is_smeared():
    picture = np.asarray(Image.open(Path(__file__).parents[2] / "workflows" / "inputs" / "pocket_damaged.png"))
    whole = np.repeat(picture[None, ..., :3], 2, axis=0)
    whole[:, :, : SIZE // 2] = whole[:, :, : SIZE // 2 - 1 : -1]  # its lost half, mirrored
    smeared = np.stack([np.roll(whole[0], shift, axis=1) for shift in range(0, 48, 4)]).mean(0).astype(np.uint8)
    judge = load_judge()
    assert clarity(judge, whole) > 1.5 * clarity(judge, smeared[None])


def test_kernel_distance_is_unbiased_and_tells_sets_apart():
    generator = torch.Generator().manual_seed(8)
    draws = torch.randn(300, 2, 24, 6, generator=generator)
    found = torch.tensor([kernel_distance(a, b) for a, b in draws])
    assert abs(found.mean()) < 3 * found.std() / len(found) ** 0.5
    assert found.min() < 0
    assert kernel_distance(draws[0, 0], draws[0, 1] + 2) > 10 * found.std()


def test_precision_sees_what_is_wrong_and_recall_what_is_missing():
    generator = torch.Generator().manual_seed(9)
    real = torch.cat([torch.randn(60, 4, generator=generator), torch.randn(60, 4, generator=generator) + 20])
    half = torch.randn(60, 4, generator=generator)
    strange = torch.cat([half, half + 200])
    precision, recall = precision_recall(half, real)
    assert precision > 0.8 and 0.3 < recall < 0.55
    assert abs(precision_recall(strange, real)[0] - precision / 2) < 1e-6


def test_jackknife_of_a_mean_is_its_standard_error():
    groups = torch.randn(10, 1, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    value, error = jackknife(lambda rows: rows.mean().item(), groups)
    assert math.isclose(value, groups.mean().item())
    assert math.isclose(error, groups.std().item() / math.sqrt(10))


def test_frechet_distance_of_gaussians():
    torch.manual_seed(0)
    x = torch.randn(4000, 3)
    assert abs(frechet_distance(x, x)) < 1e-6
    assert abs(frechet_distance(x, x + 2) - 12) < 1e-3
    assert abs(frechet_distance(x, 3 * x) - 12) < 0.5
