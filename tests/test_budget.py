"""--minutes: how many steps fit, and that finding out leaves no trace in the run."""

import dataclasses
import json
import math
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import score, trainer

from gpt2_mlx import checkpoint, files, folders, metrics
from gpt2_mlx.corpus import vocabularies
from gpt2_mlx.training import budget, run
from gpt2_mlx.training.budget import Seconds, needed, steps_within
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.settle import Settled, settle

NOTHING = Seconds(0, 0, 0, 0, 0, 0, 0)
SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16, "batch_size": 2, "dropout": 0.1, "device": "cpu"}


def settings(steps: int, tokens: int = 300_000, **fields) -> TrainConfig:
    return TrainConfig(preset="tiny", max_steps=steps, **fields).resolved(on_gpu=False, tokens=tokens)


times = st.floats(0, 100)
parts = st.builds(Seconds, times, st.floats(0.01, 10), times, times, times, times, times)


@given(limit=st.floats(1, 10_000), seconds=parts, tokens=st.integers(100, 10**7))
def test_what_is_found_fits_and_one_step_more_does_not(limit, seconds, tokens):
    def lasting(steps: int) -> float:
        return needed(settings(steps, tokens), seconds)

    steps = steps_within(limit, seconds, lambda n: settings(n, tokens))
    assert lasting(steps + 1) > limit
    assert lasting(steps) <= limit if steps else lasting(1) > limit


@pytest.mark.parametrize(
    ("evaluate", "save", "sample", "init_from"),
    [(3, 2, 2, "scratch"), (2, 3, 0, "gpt2"), (4, 4, 4, "scratch"), (7, 9, 7, "scratch"), (1, 5, 6, "scratch")],
)
def test_the_parts_of_a_run_are_counted_as_it_takes_them(tmp_path, monkeypatch, evaluate, save, sample, init_from):
    one = trainer(tmp_path, eval_interval=evaluate, save_interval=save, sample_interval=sample, max_steps=7)
    one.config = dataclasses.replace(one.config, init_from=init_from)
    ever_less = iter(range(99, 0, -1))
    one.evaluate = lambda split: score(next(ever_less))
    monkeypatch.setattr("gpt2_mlx.training.trainer.generate", lambda *a, **k: "")
    monkeypatch.setattr("gpt2_mlx.training.trainer.sync", lambda log: None)
    for name in ("save", "mark", "prune", "load_weights"):
        monkeypatch.setattr(checkpoint, name, lambda *a, **k: None)
    one.fit()
    told = [event["event"] for event in metrics.read(one.run / "metrics.jsonl")]
    for part, event in (("validation", "eval"), ("test", "test"), ("sample", "sample"), ("save", "save")):
        assert needed(one.config, dataclasses.replace(NOTHING, **{part: 1})) == told.count(event), part
    assert needed(one.config, dataclasses.replace(NOTHING, step=1)) == 7
    assert needed(one.config, dataclasses.replace(NOTHING, begin=2, curve=3)) == 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "data", lambda: tmp_path)


def settled(text: Path, out: Path, **flags) -> Settled:
    flags = TrainConfig(data=str(text), out=str(out), **SHAPE, **flags)
    return settle(flags, lambda saved: dataclasses.replace(saved, resume=True, minutes=flags.minutes))


def trained(one: Settled) -> dict[str, bytes]:
    """The last checkpoint's bytes."""
    with run.opened(one) as trainer:
        trainer.fit()
    folder = (one.run / "latest").resolve()
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


@pytest.fixture
def half_a_second_a_step(monkeypatch):
    """What is measured is measured indeed, on the run's disk, and then replaced."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    measure = budget.measure
    known = dataclasses.replace(NOTHING, begin=1.0, step=0.5)
    monkeypatch.setattr(budget, "measure", lambda *arguments: (measure(*arguments), known)[1])


def test_a_run_of_minutes_has_the_bytes_of_one_of_as_many_steps(text, tmp_path, half_a_second_a_step, capsys):
    given = trained(settled(text, tmp_path / "given", max_steps=8))
    found = settled(text, tmp_path / "found", minutes=5.1 / 60)
    assert (found.config.max_steps, found.config.minutes) == (8, None)
    assert "--minutes 0.085 holds 8 steps of 0.5 s" in capsys.readouterr().out
    assert not list(tmp_path.glob(".minutes-*"))
    assert trained(found) == given
    config, other = (json.loads((one / "train.json").read_text())["config"] for one in (found.run, tmp_path / "given"))
    assert config | {"out": ""} == other | {"out": ""}


def test_a_resumed_run_keeps_its_steps(text, tmp_path, half_a_second_a_step, monkeypatch):
    one = settled(text, tmp_path / "run", minutes=5.1 / 60)
    with run.opened(one) as trainer:
        trainer.stop_reason = "SIGTERM"
        trainer.fit()
    monkeypatch.setattr(budget, "measure", None)  # nothing is measured again
    again = settled(text, tmp_path / "run", minutes=9, resume=True)
    assert (again.config.max_steps, again.config.minutes) == (8, None)


def test_a_folder_that_holds_a_run_is_refused_before_a_vocabulary_is_made_or_a_step_timed(text, tmp_path, monkeypatch):
    trained(settled(text, tmp_path / "run", max_steps=2))
    for module, name in ((budget, "measure"), (vocabularies, "find")):
        monkeypatch.setattr(module, name, None)
    with pytest.raises(ValueError, match="run holds a run already: go on with --resume"):
        settled(text, tmp_path / "run", minutes=9)


def test_a_run_that_another_process_has_is_not_read(text, tmp_path, monkeypatch):
    one = settled(text, tmp_path / "run", max_steps=2)
    trained(one)
    monkeypatch.setattr(checkpoint, "to_resume", None)
    held = files.lock(one.run)
    with pytest.raises(ValueError, match="run is in use by another process"), run.opened(one):
        pass
    held.close()


@pytest.mark.parametrize("eval_tokens", [0, 70])
def test_a_few_batches_tell_how_long_a_split_takes(text, tmp_path, monkeypatch, eval_tokens):
    one = settled(text, tmp_path / "run", max_steps=9, eval_tokens=eval_tokens)
    monkeypatch.setattr(budget, "_timed", lambda act, *arguments: (act(*arguments), 1.0)[1])
    held = mx.get_active_memory()
    seconds = budget.measure(dataclasses.replace(one.config, minutes=0.01), one.dataset, one.run)
    assert mx.get_active_memory() - held < 100_000  # not the weights and moments that were timed
    batches = [math.ceil((eval_tokens or len(one.dataset.split(name)) - 1) / 32) for name in ("val", "test")]
    assert [seconds.validation, seconds.test] == [n / 2 for n in batches]  # two of them were timed
    assert (seconds.step, seconds.sample, seconds.save, seconds.curve) == (1, 1, 1, 1)
    assert seconds.begin > 0
    assert not (tmp_path / "run").exists()


def test_a_pause_of_the_machine_is_not_taken_for_its_speed(text, tmp_path, monkeypatch):
    one, times = settled(text, tmp_path / "run", max_steps=9), iter([0.5, 0.5, 60, 0.75, 0.5, 0.75])
    monkeypatch.setattr(budget, "_timed", lambda *_: next(times, 1.0))
    assert budget.measure(dataclasses.replace(one.config, minutes=0.01), one.dataset, one.run).step == 0.75


def test_minutes_that_are_too_few_are_refused_with_the_least(text, tmp_path, half_a_second_a_step):
    with pytest.raises(
        ValueError, match=r"--minutes is 0\.001; a run of one step takes 0\.03 here, which is the least"
    ):
        settled(text, tmp_path / "run", minutes=0.001)
    assert not (tmp_path / "run").exists()


def test_minutes_and_steps_are_not_both_given(text, tmp_path):
    with pytest.raises(ValueError, match="--minutes is 3 and --max-steps is 40: leave one out"):
        settled(text, tmp_path / "run", minutes=3.0, max_steps=40)


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_minutes_are_more_than_none(minutes):
    with pytest.raises(ValueError, match="--minutes is .*; it must be more than 0"):
        TrainConfig(minutes=minutes)
