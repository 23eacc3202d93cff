"""Pictures of a distillation: folders and tar files with captions, sizes, crops and flips."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from lcm_core.distill.data.folder import folder_parts, read_folder
from lcm_core.distill.data.pictures import Views, bucket_of, bucket_sizes, encode_pictures, load_picture, size_of
from lcm_core.distill.data.prepare import parts_of
from lcm_core.distill.data.source import Sample


def samples(folder):
    return [sample for part in folder_parts(folder) for sample in part.read()]


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
    assert read_folder(folder) == {"a.png": "a red wall", "c.webp": "nothing", "more/b.jpg": "a ramp"}
    pictures = samples(folder)
    assert [size_of(picture) for picture in pictures] == [(200, 100), (64, 64), (120, 180)]
    sizes = bucket_sizes(64 * 64, 16)
    met = []

    def encode(x):
        met.append(tuple(x.shape))
        return x[:, :, ::8, ::8]

    encoded = {i: (size, z[0]) for i, size, z in encode_pictures(pictures, encode, sizes)}
    assert met == [(1, 3, 48, 80), (1, 3, 64, 64), (1, 3, 80, 48)]
    assert [encoded[i][0] for i in range(3)] == [(80, 48), (64, 64), (48, 80)]
    red, clear, ramp = (encoded[i][1] for i in range(3))
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
    assert list(read_folder(folder).values()) == ["A", "C", "B"]
    write({"file_name": "./a.png", "text": "A"}, {"file_name": "more\\b.jpg", "text": "B"}, entries[2])
    assert list(read_folder(folder).values()) == ["A", "C", "B"]
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
    (broken,) = (sample for sample in samples(folder) if sample.name.endswith("c.webp"))
    with pytest.raises(ValueError, match="c.webp is not a readable picture"):
        size_of(broken)
    whole = next(sample for sample in samples(folder) if sample.name.endswith("a.png"))
    cut = Sample("a.png", whole.content[:-40], "a")
    assert size_of(cut) == (200, 100)
    with pytest.raises(ValueError, match="a.png is not a readable picture"):
        load_picture(cut, (64, 64), Views())
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
    (picture,) = samples(tmp_path)
    (loaded,) = load_picture(picture, (32, 32), Views())
    assert loaded.shape == (3, 32, 32) and loaded.dtype == torch.uint8
    assert (loaded[:, :, 2:-2].float() - 200).abs().max() < 5


def picture_of(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def test_views_are_crops_and_flips_that_the_picture_itself_decides():
    ramp = np.tile(np.linspace(0, 255, 192).astype(np.uint8)[None, :, None], (64, 1, 3))
    wide = [Sample(str(i), picture_of(np.roll(ramp, i, axis=0) + np.uint8(i)), "") for i in range(40)]
    middle = load_picture(wide[0], (64, 64), Views())[0].float()
    flipped = load_picture(wide[0], (64, 64), Views(2, flip=True)).float()
    assert sorted([torch.equal(view, middle) for view in flipped]) == [False, True]
    assert torch.equal(flipped[0], flipped[1].flip(-1))
    views = load_picture(wide[0], (64, 64), Views(6, "random", flip=True)).float()
    left = views.mean((1, 2))[:, [0, -1]].amin(1)  # where a crop begins
    assert left.std() > 20 and left.min() >= 0 and views.mean((1, 2)).max() <= 255
    assert [bool(v.mean((0, 1)).diff().mean() < 0) for v in views] in ([False, True] * 3, [True, False] * 3)
    again = load_picture(Sample("another name", wide[0].content, "other"), (64, 64), Views(6, "random", flip=True))
    assert torch.equal(again.float(), views)
    turned = [Views(flip=True).of(sample.digest)[0][1] for sample in wide]
    assert 10 < sum(turned) < 30
    places = torch.tensor([Views(crop="random").of(sample.digest)[0][0] for sample in wide])
    assert places.min() < 0.15 and places.max() > 0.85 and abs(places.mean() - 0.5) < 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [((2,), "views 2 must be 1 … 1 for crop center, with flip False"), ((3, "center", True), "must be 1 … 2"),
     ((0, "random"), "views 0 must be at least 1"), ((1, "left"), "crop 'left' must be center or random")],
)  # fmt: skip
def test_views_that_would_not_differ_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Views(*given)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tar_files_are_read_as_webdataset_writes_them(tmp_path):
    import webdataset

    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    for k, (first, last) in enumerate([(0, 3), (3, 5)]):
        with webdataset.TarWriter(str(tmp_path / f"{k:03}.tar")) as tar:
            for i in range(first, last):
                caption = {"txt": f"number {i}"} if i % 2 else {"json": {"caption": f"number {i}", "other": 1}}
                tar.write({"__key__": f"some/{i:04}", "png": pixels[i], **caption})
    for data in (str(tmp_path), str(tmp_path / "{000..001}.tar")):
        parts = parts_of(data)
        read = [sample for part in parts for sample in part.read()]
        assert len(parts) == 2 and [sample.caption for sample in read] == [f"number {i}" for i in range(5)]
        views = torch.cat([load_picture(sample, (16, 16), Views()) for sample in read])
        assert torch.equal(views.permute(0, 2, 3, 1), torch.from_numpy(pixels))
        assert sum(part.size for part in parts) >= sum(parts[0].share(sample) for sample in read)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.png": b"x"}, "a of .*bad.tar has no caption"),
        ({"a.png": b"x", "a.json": b'{"text": "x"}'}, "a of .*bad.tar has no caption"),
        ({"a.png": b"x", "a.txt": b" "}, "a of .*bad.tar has an empty caption"),
        ({"a.txt": b"x"}, "a of .*bad.tar has 0 pictures"),
        ({"a.png": b"x", "a.jpg": b"x", "a.txt": b"x"}, "a of .*bad.tar has 2 pictures"),
    ],
)
def test_a_bad_sample_of_a_tar_file_is_named(tmp_path, members, said):
    write_tar(tmp_path / "bad.tar", members)
    with pytest.raises(ValueError, match=said):
        list(parts_of(str(tmp_path))[0].read())


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar file, but long enough to have a header" * 20)
    with pytest.raises(ValueError, match="a.tar is no readable tar file"):
        list(parts_of(str(tmp_path))[0].read())
    with pytest.raises(FileNotFoundError, match="1.tar does not exist"):
        parts_of(str(tmp_path / "{1..2}.tar"))
    with pytest.raises(FileNotFoundError, match="is no folder of pictures and no .tar file"):
        parts_of(str(tmp_path / "nothing"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"has pictures \(a.png\) and tar files \(a.tar\)"):
        parts_of(str(tmp_path))
