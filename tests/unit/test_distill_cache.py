"""The cache of latents and conditions: what it gives a training, what it finds again, and what it takes of memory."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import CONFIG, SCHEDULE, tiny

from lcm_core.distill import Examples, distill
from lcm_core.distill.data import cache
from lcm_core.distill.data.cache import store
from lcm_core.distill.data.encoding import pictures_by
from lcm_core.distill.data.examples import StoredExamples
from lcm_core.distill.data.folder import folder_parts
from lcm_core.distill.data.order import Order
from lcm_core.distill.data.pictures import Views, bucket_sizes
from lcm_core.distill.data.shards import Made, open_shards, write_shard
from lcm_core.distill.data.source import Part, Sample

SIZES = bucket_sizes(32 * 32, 8)
EMPTY = (torch.tensor(0.0),)


class Encoder:
    """Latents (2, H/8, W/8) that are means of pixels, and the length of a caption as its condition."""

    def __init__(self, after=None):
        self.pictures, self.captions, self.after = 0, [], after

    def encode(self, pixels):
        self.pictures += len(pixels)
        if self.after:
            self.after(self)
        return torch.nn.functional.avg_pool2d(pixels, 8)[:, :2] * 4 - 2

    def conditions_of(self, prompts, size):
        self.captions += prompts
        return [(torch.tensor(len(prompt) / 10),) for prompt in prompts]


@pytest.fixture
def folder(tmp_path, monkeypatch, one_thread):
    """Twenty pictures of three sizes that were written a minute ago; parts of four."""
    monkeypatch.setattr("lcm_core.distill.data.folder.PART", 4)
    monkeypatch.setattr(cache, "PART", 4)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(20):
        width, height = [(40, 40), (64, 32), (32, 60)][i % 3]
        write(pictures / f"{i:02}.png", i, (height, width))
        (pictures / f"{i:02}.txt").write_text("a" * (1 + i // 6))
    return pictures


def write(path, seed, shape=(40, 40), age=60.0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (time.time() - age,) * 2)


def stored(folder, encoder, recipe="vae", views=Views(), report=lambda done, total: None):  # noqa: B008
    make = pictures_by(encoder, SIZES, views, 8)
    return store(folder.parent / "cache", folder_parts(folder), [recipe, views.count], make, report)


def in_memory(folder, encoder):
    """Every sample's latents and condition without a cache, from the same parts."""
    make = pictures_by(encoder, SIZES, Views(), 8)
    made = []
    for part in folder_parts(folder):
        made += [each for _, each in sorted(make(list(part.read())), key=lambda pair: pair[0])]
    return [each.latents[0] for each in made], [each.cond for each in made]


def losses_of(batches, config=CONFIG, state=None, stop_after=None):
    model, weights = tiny()
    steps = distill(model, weights, batches, config, schedule=SCHEDULE, state=state)
    losses = [progress.loss for progress in islice(steps, stop_after)]
    steps.close()
    return losses


def examples(shards, **given):
    return StoredExamples(shards, **{"batch": 3, "seed": 7, "uncond": lambda shape: EMPTY, **given})


@pytest.mark.bits
def test_a_training_from_the_cache_is_that_from_memory(folder, tmp_path):
    latents, cond = in_memory(folder, Encoder())
    expected = losses_of(Examples(latents, cond, EMPTY, 3, 7))
    shards = stored(folder, Encoder()).shards
    assert len(shards) == 20 and len(shards.kinds) == 3
    assert losses_of(examples(shards)) == expected
    state = tmp_path / "a.safetensors"
    first = losses_of(examples(shards), replace(CONFIG, save_every=5), state, stop_after=5)
    assert first + losses_of(examples(open_shards(shards.files)), CONFIG, state) == expected


def test_what_is_there_is_not_made_again(folder):
    encoder, again = Encoder(), Encoder()
    first = stored(folder, encoder)
    assert (first.made, encoder.pictures) == (20, 20)
    assert set(encoder.captions) == {"a", "aa", "aaa", "aaaa"} and len(encoder.captions) < 20
    second = stored(folder, again)
    assert (second.made, again.pictures) == (0, 0)
    assert [second.contents, second.captions] == [first.contents, first.captions]
    assert second.shards.files == first.shards.files


def test_pictures_that_nobody_touched_are_not_read_again(folder, monkeypatch):
    first = stored(folder, Encoder())
    os.utime(folder / "00.png", (time.time() - 30,) * 2)
    read = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or whole(path))
    again = stored(folder, Encoder())
    assert [name for name in read if name.endswith(".png")] == ["00.png", "01.png", "02.png", "03.png"]
    assert (again.made, again.contents) == (0, first.contents)


def test_what_changed_is_made_and_the_rest_is_kept(folder):
    first = stored(folder, Encoder())
    write(folder / "05.png", 99, (32, 64))
    changed = stored(folder, Encoder())
    assert (changed.made, changed.captions) == (4, first.captions) and changed.contents != first.contents
    (folder / "13.txt").write_text("another")
    other = stored(folder, Encoder())
    assert (other.made, other.contents) == (4, changed.contents) and other.captions != changed.captions
    assert [
        stored(folder, Encoder(), "another vae").made,
        stored(folder, Encoder(), views=Views(2, flip=True)).made,
    ] == [20] * 2
    assert stored(folder, Encoder()).made == 0
    other.shards.files[2].unlink()
    assert stored(folder, Encoder()).made == 4


def test_a_picture_that_changed_just_now_is_looked_at_again(folder):
    """Two changes within a tick of the file system's clock leave a file of the same size its stamp."""
    now = time.time()
    contents = []
    for seed in (98, 99):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "05.png", "bmp")
        os.utime(folder / "05.png", (now, now))
        contents.append(stored(folder, Encoder()).contents)
    assert contents[0] != contents[1]


def in_process(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_a_killed_encoding_goes_on(folder):
    def kill(encoder):
        if encoder.pictures > 10:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = in_process(stored, folder, Encoder(kill))
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    encoder = Encoder()
    rest = stored(folder, encoder)
    assert rest.made == encoder.pictures == 12  # two whole parts were kept
    latents, _ = in_memory(folder, Encoder())
    z, _ = rest.shards.read([1, 4], [0, 0])
    assert torch.equal(z, torch.stack([latents[1], latents[4]]))
    assert not list((folder.parent / "cache").glob("*.part"))


def test_processes_share_what_is_to_be_made(folder):
    def slowly(encoder):
        time.sleep(0.05)

    results = multiprocessing.get_context("fork").SimpleQueue()

    def work():
        result = stored(folder, Encoder(slowly))
        results.put((result.made, result.contents, len(result.shards)))

    processes = [in_process(work) for _ in range(3)]
    for process in processes:
        process.join(60)
    made, contents, counts = zip(*(results.get() for _ in processes), strict=True)
    assert sum(made) == 20 and all(made) and len(set(contents)) == 1 and counts == (20, 20, 20)


def test_progress_counts_pictures(folder):
    seen = []
    stored(folder, Encoder(), report=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 20) for i in range(20)]
    seen.clear()
    stored(folder, Encoder(), report=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 20) for i in range(4, 24, 4)]


def test_a_picture_without_finite_latents_is_named(folder):
    class Overflowing(Encoder):
        def encode(self, pixels):
            return super().encode(pixels) * torch.inf

    with pytest.raises(ValueError, match=r"the latent of .*00.png has values that are not finite; use --dtype"):
        stored(folder, Overflowing())
    assert not list((folder.parent / "cache").glob("*.safetensors"))


def test_an_epoch_has_one_view_of_each_picture_and_the_next_the_next(folder):
    shards = stored(folder, Encoder(), views=Views(2, flip=True)).shards
    data = examples(shards)
    epoch = sum(-(-len(bucket) // 3) for bucket in data.order.buckets)
    views = {}
    for step in range(2 * epoch):
        now, chosen = data.order(step)
        z, cond, uncond = data(step)
        for i, latent in zip(chosen.tolist(), z, strict=True):
            views.setdefault(i, {})[now] = latent
        assert len(cond[0]) == len(uncond[0]) == 3
    assert sorted(views) == list(range(20))
    for seen in views.values():
        assert not torch.equal(seen[0], seen[1]) and torch.allclose(seen[0], seen[1].flip(-1), atol=1e-6)


def test_batches_depend_on_seed_and_step_alone(folder):
    shards = stored(folder, Encoder()).shards
    once = {step: examples(shards, empty_share=0.3)(step) for step in (11, 3, 0, 250)}
    data = examples(shards, empty_share=0.3)
    for step in range(12):
        batch = data(step)
        if step in once:
            assert all(
                torch.equal(a, b) for a, b in zip(batch[:1] + batch[1], once[step][:1] + once[step][1], strict=True)
            )
    other = [examples(shards, seed=8)(step)[0].flatten().tolist() for step in (11, 3, 0)]
    assert other != [once[step][0].flatten().tolist() for step in (11, 3, 0)]


def test_the_share_of_empty_prompts(folder):
    shards = stored(folder, Encoder()).shards
    data = examples(shards, empty_share=0.25, guided=False)
    drawn = torch.cat([data(step)[1][0] for step in range(200)])
    assert abs(float((drawn == 0).float().mean()) - 0.25) < 0.05
    assert data(0)[2] == ()
    with pytest.raises(ValueError, match="empty_share 1 must be in"):
        examples(shards, empty_share=1.0)
    with pytest.raises(ValueError, match=r"conditions of shapes .*; set empty_share to 0"):
        examples(shards, empty_share=0.5, uncond=lambda shape: (torch.zeros(2),))(0)


def test_an_order_has_an_epoch_in_batches_of_one_bucket():
    order = Order((np.arange(0, 10, 2), np.arange(1, 4, 2)), batch=2, seed=3)
    seen = [order(step) for step in range(8)]
    assert [epoch for epoch, _ in seen] == [0] * 4 + [1] * 4
    for epoch in (0, 1):
        counts = Counter(i for e, chosen in seen if e == epoch for i in chosen.tolist())
        assert sorted(counts) == [0, 1, 2, 3, 4, 6, 8] and sum(counts.values()) == 8
    assert all(len({i % 2 for i in chosen.tolist()}) == 1 for _, chosen in seen)


def test_a_damaged_row_is_noticed_when_it_is_read(folder):
    shards = stored(folder, Encoder()).shards
    path = shards.files[1]
    content = bytearray(path.read_bytes())
    content[shards.groups[1, 0].begins[0]] ^= 1
    path.write_bytes(content)
    shards = open_shards(shards.files)
    places = np.flatnonzero((shards.file == 1) & (shards.kind == 0))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged \(a row's checksum is another\); delete it"):
        shards.read(places[:1], [0])
    shards.read(np.flatnonzero((shards.file == 0) & (shards.kind == 0)), [0, 0])
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_shards(shards.files)
    (folder.parent / "other.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0" + b"{}".ljust(16))
    with pytest.raises(ValueError, match="is no shard of latents"):
        open_shards([folder.parent / "other.safetensors"])


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, monkeypatch):
    """240 MB of conditions are written and read in far less; of a sample some bytes stay."""
    monkeypatch.setattr(cache, "PART", 8)

    def make(samples):
        for i in range(len(samples)):
            yield i, Made(torch.randn(1, 4, 8, 8), (torch.randn(250_000),))

    def part(k):
        return Part(lambda: k, lambda: (Sample(f"{k}.{i}", f"{k}.{i}".encode(), "") for i in range(24)), 24)

    before, highest = resident(), 0

    def report(done, total):
        nonlocal highest
        highest = max(highest, resident() - before)

    result = store(tmp_path, [part(k) for k in range(10)], "big", make, report)
    shards = result.shards
    assert len(shards) == 240 and sum(path.stat().st_size for path in shards.files) > 240e6
    data = examples(shards, batch=2, uncond=lambda shape: (torch.zeros(250_000),))
    for step in range(130):
        data(step)
        report(step, 130)
    assert highest < 80e6
    kept = [shards.kind, shards.file, shards.row, *(group.checksums for group in shards.groups.values())]
    assert sum(array.nbytes for array in kept) / len(shards) < 32


def test_a_shard_that_another_process_made_first_is_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, [Made(torch.zeros(1, 2, 2), (torch.ones(3),))], "first")
    write_shard(path, [Made(torch.ones(1, 2, 2), (torch.ones(3),))], "second")
    z, cond = open_shards([path]).read([0], [0])
    assert not z.any() and cond[0].tolist() == [[1, 1, 1]]
