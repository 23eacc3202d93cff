"""Data of a distillation: batches by size, folders of pictures with captions, and the teacher's own latents."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from lcm_core.distill import Examples, sample_latents
from lcm_core.distill.data import bucket_of, bucket_sizes, encode_pictures, load_picture, read_folder
from pocket import teacher

SHAPES = [(4, 8, 8)] * 5 + [(4, 8, 6)] * 3 + [(4, 6, 8)]


def examples(**changed):
    """Latents that hold their own number; the second prompt is two words long."""
    latents = [torch.full(shape, float(i)) for i, shape in enumerate(SHAPES)]
    cond = [(torch.full((2 if i == 1 else 1, 3), float(i)), torch.tensor(float(i))) for i in range(len(SHAPES))]
    given = {"latents": latents, "cond": cond, "uncond": (torch.zeros(1, 3), torch.tensor(-1.0)), "batch": 2, "seed": 7}
    return Examples(**given | changed)


def numbers(z):
    return z.flatten(1)[:, 0].int().tolist()


def test_batches_are_of_one_shape_and_an_epoch_has_every_example():
    data, epochs = examples(), []
    for epoch in range(2):
        batches = [data(step) for step in range(epoch * 6, epoch * 6 + 6)]
        for z, cond, uncond in batches:
            assert len(z) == 2 and numbers(z) == cond[1].int().tolist() == cond[0][:, 0, 0].int().tolist()
            assert uncond[0].shape == (2, 1, 3) and uncond[1].tolist() == [-1, -1]
        epochs.append([numbers(z) for z, _, _ in batches])
    for drawn in epochs:
        counts = Counter(sum(drawn, []))
        assert set(counts) == set(range(9)) and sum(counts.values()) == 12
        assert [counts[1], counts[8]] == [2, 2]  # alone in their buckets
    assert epochs[0] != epochs[1]


def test_a_step_gives_its_batch_whatever_came_before():
    steps = [11, 3, 0, 250]
    once = [numbers(examples()(step)[0]) for step in steps]
    data = examples()
    assert once == [numbers(data(step)[0]) for step in steps]
    assert once != [numbers(examples(seed=8)(step)[0]) for step in steps]
    stacked = Examples(torch.arange(3.0)[:, None, None, None], [(torch.zeros(2),)] * 3, (torch.zeros(2),), batch=3)
    assert sorted(numbers(stacked(5)[0])) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"latents": [], "cond": []}, "no latents"),
        ({"cond": [(torch.zeros(1, 3),)]}, "9 latents, but 1 captions"),
        ({"batch": 0}, "batch 0"),
        ({"latents": [torch.full((4, 8, 8), math.nan)] * 9}, "latents 0, 1, 2 and 6 more have values"),
    ],
)
def test_examples_errors(changed, said):
    with pytest.raises(ValueError, match=said):
        examples(**changed)


@pytest.fixture
def folder(tmp_path):
    """Three pictures: wide, tall in a subfolder and turned by its EXIF tag, and half transparent."""
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    (tmp_path / "more").mkdir()
    turned = Image.fromarray(np.tile(np.linspace(0, 255, 120).astype(np.uint8)[:, None, None], (1, 180, 3)))
    exif = turned.getexif()
    exif[0x0112] = 6  # the top is at the left: turn it by 90 degrees
    turned.save(tmp_path / "more" / "b.jpg", exif=exif)
    Image.new("RGBA", (64, 64), (0, 0, 255, 0)).save(tmp_path / "c.webp", lossless=True)
    for name, caption in (("a", "a red wall\n"), ("more/b", "a ramp"), ("c", "nothing")):
        (tmp_path / f"{name}.txt").write_text(caption, encoding="utf-8")
    return tmp_path


def test_a_folder_with_captions_beside_its_pictures(folder):
    a, c, b = read_folder(folder)
    assert [p.caption for p in (a, b, c)] == ["a red wall", "a ramp", "nothing"]
    assert [p.size for p in (a, b, c)] == [(200, 100), (120, 180), (64, 64)]
    sizes = bucket_sizes(64 * 64, 16)
    met = []

    def encode(x):
        met.append(tuple(x.shape))
        return x[:, :, ::8, ::8]

    red, clear, ramp = encode_pictures([a, c, b], encode, sizes)
    assert met == [(1, 3, 48, 80), (1, 3, 64, 64), (1, 3, 80, 48)]
    assert red.shape == (3, 6, 10) and red[0].eq(1).all() and not red[1:].any()
    assert clear.eq(1).all()
    assert (ramp[0].diff(dim=1) < 0).all() and ramp[0].std(0).max() < 0.05


def test_a_folder_with_a_table_of_captions(folder):
    entries = [{"file_name": "a.png", "text": "A"}, {"file_name": "more/b.jpg", "text": "B"}]
    entries.append({"file_name": "c.webp", "text": "C"})
    table = folder / "metadata.jsonl"

    def write(*lines):
        table.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")

    write(*entries)
    assert [p.caption for p in read_folder(folder)] == ["A", "C", "B"]
    for lines, said in [
        (entries[:2], "3 pictures, but 1 without caption \\(c.webp\\)"),
        ([*entries, {"file_name": "d.png", "text": "D"}], "captions of .*d.png, which are not there"),
        ([*entries, entries[0]], "line 4 of .* a.png again"),
        ([*entries, {"file_name": "../x.png", "text": "X"}], "line 4 of .*is not a file name below"),
        ([*entries, {"file": "a.png"}], "line 4 of .* must be like"),
        (["a cat"], "line 1 of"),
        ([*entries[:2], {"file_name": "c.webp", "text": " "}], "1 of 3 pictures have an empty caption \\(c.webp\\)"),
    ]:
        write(*lines)
        with pytest.raises(ValueError, match=said):
            read_folder(folder)


def test_folder_errors(folder):
    (folder / "c.txt").unlink()
    with pytest.raises(ValueError, match=r"3 pictures, but 1 without caption \(c.webp\)"):
        read_folder(folder)
    for name in ("c", "more/b"):
        (folder / f"{name}.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"2 of 3 pictures have an empty caption \(c.webp, more/b.jpg\); write what"):
        read_folder(folder)
    (folder / "more/b.txt").write_text("b")
    (folder / "c.webp").write_bytes(b"RIFF no picture")
    (folder / "c.txt").write_text("c")
    with pytest.raises(ValueError, match="c.webp is not a readable picture"):
        read_folder(folder)
    for missing in (folder / "nothing", folder / "empty"):
        (folder / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=missing.name):
            read_folder(missing)


def test_buckets_fill_the_area_at_every_aspect():
    sizes = bucket_sizes(512 * 512)
    assert (512, 512) in sizes and (640, 384) in sizes and (384, 640) in sizes
    for width, height in sizes:
        assert width % 64 == height % 64 == 0 and 0.75 * 512**2 < width * height <= 512**2
        assert (height, width) in sizes and 0.5 <= width / height <= 2
    assert bucket_of((1920, 1080), sizes) == (640, 384)
    assert bucket_of((100, 1000), sizes) == min(sizes, key=lambda s: s[0] / s[1])
    with pytest.raises(ValueError, match="use at least 4096"):
        bucket_sizes(100)


def test_pictures_are_cropped_to_their_middle(tmp_path):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("x")
    (picture,) = read_folder(tmp_path)
    loaded = load_picture(picture, (32, 32))
    assert loaded.shape == (3, 32, 32) and loaded.dtype == torch.float32
    assert (loaded[:, :, 2:-2] - 200 / 255).abs().max() < 0.02


def test_the_teacher_draws_its_own_latents():
    """Pocket latents like the data's, each the same in any batch."""
    unet, words = teacher.load_teacher()

    def model(x, t, cond, omega):
        return unet(x, t, *cond)

    prompts = [["cat"], ["car"], ["sun"], ["tulip"]]
    cond, uncond = words(words.index(prompts)), words(words.index([[]] * 4))
    options = {"schedule": teacher.SCHEDULE, "scale": 2.0, "steps": 4, "seed": 3}
    z = sample_latents(model, cond, uncond, (4, 8, 8), **options)
    assert z.shape == (4, 4, 8, 8) and 0.6 < z.std() < 1.4
    last = tuple(c[2:] for c in cond), tuple(c[2:] for c in uncond)
    torch.testing.assert_close(sample_latents(model, *last, (4, 8, 8), **options, first=2), z[2:], rtol=1e-4, atol=1e-4)
    other = sample_latents(model, cond, uncond, (4, 8, 8), **options | {"seed": 4})
    assert (other - z).abs().max() > 0.5
