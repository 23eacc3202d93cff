"""The state of a training: what may go on from it, what a full disk leaves, and damaged files."""

import json
import logging
import random
import re
import resource
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_training import CONFIG, SCHEDULE, batches, tiny, train

from lcm_core.distill import DistillConfig, Examples, FullWeights, distill, inject_lora
from lcm_core.distill.identity import MAY_CHANGE, fingerprint
from lcm_core.distill.state import CHECKSUM, KEY, checksum, read_losses, read_state
from lcm_core.schedule import NoiseSchedule

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def files_of_at_most(size):
    """The kernel refuses longer files of this process, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def values_of(weights):
    return torch.cat([p.detach().flatten() for p in weights.parameters()])


@pytest.mark.bits
def test_a_full_disk_loses_neither_the_earlier_state_nor_the_training(tmp_path, caplog):
    state = tmp_path / "state.safetensors"
    train(CONFIG, state, stop_after=4)
    earlier = state.read_bytes()
    model, weights = tiny()
    with files_of_at_most(1000):
        done = list(distill(model, weights, batches, CONFIG, schedule=SCHEDULE, state=state))
    said = [step.state_error for step in done]
    assert [bool(text) for text in said] == [False, True] * 4
    assert re.search("after step 12 could not be written to .*File too large.* is still that of an earlier", said[-1])
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, text) for text in said if text
    ]
    assert state.read_bytes() == earlier and len(list(tmp_path.iterdir())) == 1
    losses, values = train(CONFIG)
    assert [step.loss for step in done] == losses[4:]
    assert torch.equal(values_of(weights), values)
    assert train(CONFIG, state)[0] == losses[4:]


@pytest.mark.bits
def test_leaving_with_a_full_disk_keeps_what_was_learned(tmp_path, caplog):
    """As an interrupt does: what it raises is not covered by the failing write."""
    model, weights = tiny()
    with files_of_at_most(1000), pytest.raises(KeyboardInterrupt):
        steps = distill(model, weights, batches, CONFIG, schedule=SCHEDULE, state=tmp_path / "state.safetensors")
        for step in steps:
            if step.step == 3:
                steps.throw(KeyboardInterrupt)
    assert "after step 3 could not be written" in caplog.text and "there is no earlier one" in caplog.text
    assert torch.equal(values_of(weights), train(CONFIG, stop_after=3)[1])
    assert list(tmp_path.iterdir()) == []


def go_on(state, config=CONFIG, rank=2, alpha=None, change=None, schedule=SCHEDULE, **options):
    """The losses of a training whose model `change` has changed."""
    model, weights = tiny()
    weights.remove()
    if change:
        change(model)
    weights = inject_lora(model, ["to_q", "conv1"], rank, alpha)
    steps = distill(model, weights, batches, config, schedule=schedule, state=state, **options)
    return [progress.loss for progress in steps]


def least_bit(model):
    """The smallest change of one weight that there is."""
    weight = model.cond_proj.weight.data
    weight[0, 0] = weight[0, 0].nextafter(torch.tensor(2.0))


CHANGED = {
    "objective": "lcf", "terms": {"diffusion": 1.0}, "warm_start": 2, "options": {}, "solver": "dpm++", "links": 20,
    "on_grid": False, "omega": (3, 4), "target_decay": 0.5, "ema_decay": 0.9, "distance": "l2", "huber_c": 0.01,
    "optimizer": "adamw8bit", "weight_decay": 0.1, "max_grad_norm": 2.0, "warmup": 1, "decay_to": 0.5, "accumulate": 2,
    "autocast": "bfloat16", "seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    state = tmp_path_factory.mktemp("states") / "half.safetensors"
    steps = distill(
        *tiny(), batches, CONFIG, schedule=SCHEDULE, state=state, identity={"pictures": "cats", "batch": "4"}
    )
    while next(steps).step < 6:
        pass
    steps.close()
    return state


@pytest.fixture
def state(half_done, tmp_path):
    """A training's state after 6 of 12 steps."""
    path = tmp_path / "state.safetensors"
    path.write_bytes(half_done.read_bytes())
    return path


SAME = {"identity": {"pictures": "cats", "batch": "4"}}


@pytest.mark.parametrize("name", [name for name in CHANGED if name != "options"])
def test_other_settings_are_refused_by_name(name, state, monkeypatch):
    monkeypatch.setattr("lcm_core.distill.trainer.make_optimizer", lambda config, p: torch.optim.AdamW(p))
    with pytest.raises(ValueError, match=rf"another training \({name} .* there, .* now\); resume with the same, or"):
        go_on(state, replace(CONFIG, **{name: CHANGED[name]}), **SAME)


def test_other_options_are_refused_and_the_default_is_the_same_as_none(tmp_path):
    path, config = tmp_path / "state.safetensors", replace(CONFIG, objective="pcm")
    train(config, path, stop_after=2)
    with pytest.raises(ValueError, match=r"\(options \{.phases.: 4\} there, \{.phases.: 2\} now\)"):
        train(replace(config, options={"phases": 2}), path)
    assert len(train(replace(config, options={"phases": 4}), path)[0]) == 10


def test_a_state_without_the_newer_settings_goes_on(state):
    """As an earlier version wrote it, which had no other objectives."""

    def older(text):
        record = json.loads(text)
        for name in ("terms", "warm_start", "options"):
            del record["settings"][name]
        return json.dumps(record)

    rewritten(state, change_record=older, checked=True)
    assert len(go_on(state, **SAME)) == 6


def test_every_setting_is_fixed_or_may_change():
    assert {field.name for field in fields(DistillConfig)} == {*CHANGED, *MAY_CHANGE}


@pytest.mark.parametrize(
    ("names", "changed"),
    [
        (["network"], {"change": least_bit}),
        (["rank", "alpha", "network"], {"rank": 1, "change": least_bit}),
        (["alpha"], {"alpha": 1.0}),
        (["schedule"], {"schedule": NoiseSchedule.scaled_linear(beta_end=0.0121)}),
        (["prediction"], {"prediction": "v_prediction"}),
        (["pictures"], {"identity": {"pictures": "dogs", "batch": "4"}}),
        (["batch"], {"identity": {"pictures": "cats", "batch": "2"}}),
        (["pictures", "batch"], {"identity": {}}),
        (["negative"], {"identity": {"pictures": "cats", "batch": "4", "negative": "none"}}),
    ],
)
def test_another_network_or_other_data_are_refused_by_name(names, changed, state):
    with pytest.raises(ValueError, match="is of another training") as error:
        go_on(state, **SAME | changed)
    assert re.findall(r"[(,] ?(\w+) [^ ]* there", str(error.value)) == names
    assert len(go_on(state, **SAME)) == 6


def test_all_weights_know_the_network_before_training():
    def fingerprints(weights):
        return weights.identity["network"]

    model, weights = tiny("all weights")
    other = tiny("all weights")[0]
    least_bit(other)
    with torch.no_grad():
        model.to_q.bias.add_(1)
    assert fingerprints(weights) == fingerprints(tiny("all weights")[1]) != fingerprints(FullWeights(other))


def test_gradients_are_scaled_in_float16_alone(tmp_path):
    for autocast in (None, "bfloat16", "float16"):
        path = tmp_path / f"{autocast}.safetensors"
        train(replace(CONFIG, autocast=autocast), path, stop_after=1)
        assert ("scale" in read_state(path)[0]["scaler"]) == (autocast == "float16")


def test_a_fingerprint_tells_names_dtypes_shapes_and_bytes_apart():
    x = torch.arange(4.0)
    others = [
        {"b": x},
        {"a": x.half()},
        {"a": x.view(2, 2)},
        {"a": x.view(torch.int32)},
        {"a": x, "b": x},
        {"a": -x},
        {},
    ]
    assert len({fingerprint(each) for each in [{"a": x}, *others]}) == 1 + len(others)
    assert fingerprint({"a": x, "b": x[:2]}) == fingerprint({"b": x[:2].clone(), "a": x})
    assert fingerprint({"a": torch.tensor(1.0), "b": torch.empty(0)}) != fingerprint({"a": torch.tensor(1.0)})
    assert fingerprint({"a": torch.ones(2, 3, dtype=torch.bfloat16).T}) == fingerprint(
        {"a": torch.ones(3, 2).bfloat16()}
    )


def test_examples_say_what_they_are_by_name():
    latents, cond, uncond = [torch.zeros(1, 2, 2), torch.ones(1, 2, 2)], [(torch.ones(3),)] * 2, (torch.zeros(3),)
    told = Examples(latents, cond, uncond, 2).identity
    changed = {
        "batch size": Examples(latents, cond, uncond, 1),
        "order's seed": Examples(latents, cond, uncond, 2, seed=1),
        "latents": Examples(latents[::-1], cond, uncond, 2),
        "prompts": Examples(latents, [(torch.ones(3),), (torch.zeros(3),)], uncond, 2),
        "empty prompt": Examples(latents, cond, (torch.ones(3),), 2),
    }
    assert told.keys() == changed.keys()
    for name, other in changed.items():
        assert [key for key in told if told[key] != other.identity[key]] == [name]


class Rates:
    """An AdamW that notes the rate of each step."""

    def __init__(self, monkeypatch):
        self.seen: list[float] = []
        step = torch.optim.AdamW.step

        def noted(optimizer, *args):
            self.seen.append(optimizer.param_groups[0]["lr"])
            return step(optimizer, *args)

        monkeypatch.setattr(torch.optim.AdamW, "step", noted)


def test_another_rate_takes_effect_on_the_steps_that_are_left(state, monkeypatch):
    rates = Rates(monkeypatch)
    assert len(go_on(state, replace(CONFIG, learning_rate=1e-3, save_every=5), **SAME)) == 6
    assert rates.seen == [1e-3] * 6
    with pytest.raises(
        ValueError, match="all its 12 steps, made with learning_rate 0.001 there, 0.01 now; raise steps"
    ):
        go_on(state, **SAME)
    assert go_on(state, replace(CONFIG, learning_rate=1e-3), **SAME) == []
    assert len(go_on(state, replace(CONFIG, steps=14), **SAME)) == 2
    assert rates.seen == [1e-3] * 6 + [1e-2] * 2


def test_fewer_steps_than_are_done_are_refused(state):
    with pytest.raises(ValueError, match="has 6 steps, more than steps 5; ask for 6 or more, or begin anew"):
        go_on(state, replace(CONFIG, steps=5), **SAME)


def test_a_rate_that_decays_is_not_raised_by_more_steps(tmp_path, monkeypatch):
    state, config = tmp_path / "state.safetensors", replace(CONFIG, decay_to=0.1, warmup=3)
    rates = Rates(monkeypatch)
    train(config, state, stop_after=9)
    for steps in (9, 24):
        said = rf"steps 12 there, {steps} now\).*; the steps of a rate that decays can't be changed"
        with pytest.raises(ValueError, match=said):
            train(replace(config, steps=steps), state)
    train(config, state)
    assert rates.seen[3:] == sorted(rates.seen[3:], reverse=True) and len(rates.seen) == 12


def test_other_modules_and_other_files_are_refused(state, tmp_path):
    model, weights = tiny()
    weights.remove()
    fewer = inject_lora(model, ["to_q"], 2)
    with pytest.raises(ValueError, match="trains 2 modules"):
        list(distill(model, fewer, batches, CONFIG, schedule=SCHEDULE, state=state, **SAME))
    tiny()[1].vector().save(state)
    with pytest.raises(ValueError, match="not the state of a distillation; name another file"):
        go_on(state, **SAME)
    torch.save({"step": 1}, state)
    with pytest.raises(ValueError, match="is damaged .*only safetensors is read.*; delete it or restore a copy"):
        go_on(state, **SAME)
    for path in (tmp_path / "state.pt", tmp_path / "missing" / "state.safetensors"):
        with pytest.raises(ValueError, match=path.name):
            go_on(path, **SAME)


def rewritten(path, change_tensors=lambda tensors: None, change_record=lambda text: text, checked=False):
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change_tensors(tensors)
    metadata[KEY] = change_record(metadata[KEY])
    if checked:
        metadata[CHECKSUM] = checksum(tensors, metadata[KEY])
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: rewritten(path, lambda tensors: tensors.pop("losses")),
        lambda path: rewritten(path, lambda tensors: tensors.pop("optimizer.1.exp_avg")),
        lambda path: rewritten(path, lambda tensors: tensors.update({"parameters.0": torch.zeros(3)})),
        lambda path: rewritten(path, lambda tensors: tensors.update({"losses": tensors["losses"].float()})),
        lambda path: rewritten(path, change_record=lambda text: text[:-1]),
        lambda path: rewritten(path, change_record=lambda text: "[]"),
        lambda path: rewritten(path, change_record=lambda text: text.replace('"links"', '"rungs"')),
    ],
)
def test_damaged_states_are_refused_with_the_remedy(damage, state):
    damage(state)
    for read in (lambda: go_on(state, **SAME), lambda: read_losses(state)):
        with pytest.raises(ValueError, match=r"state.safetensors is damaged \(.+\); delete it or restore a copy$"):
            read()


def test_no_mutated_state_is_read_wrong(state):
    """600 files with a few bytes changed, cut out or doubled, mostly in the header: refused, or read as it was."""
    good, losses = state.read_bytes(), read_losses(state)
    header = 8 + int.from_bytes(good[:8], "little")
    draw, refused = random.Random(0), 0
    for _ in range(600):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(header if draw.random() < 0.7 else len(data))
            kind = draw.randrange(3)
            if kind == 0:
                data[at] = draw.randrange(256)
            else:
                data[at : at + draw.randint(1, 40)] = data[at - 20 : at] if kind == 1 else b""
        state.write_bytes(data)
        try:
            assert read_losses(state) == losses
        except ValueError as error:
            assert str(state) in str(error)
            refused += 1
    assert refused > 500
