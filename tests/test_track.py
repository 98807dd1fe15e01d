"""A tracker gets what metrics.jsonl holds, and whatever it does, the run ends as it would without one."""

import os
import subprocess
import threading

import pytest
import trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_mlx import metrics
from gpt2_mlx.training import track
from gpt2_mlx.training.config import TrainConfig


class Tracker:
    """Takes what it is handed; `break_at` says which of its calls fails."""

    def __init__(self, break_at: int | None = None):
        self.got, self.ended, self.started = [], False, []
        self._break_at = break_at

    def start(self, run, id, first, config):
        self.started.append((id, first))
        return self.log, self.close

    def log(self, step, numbers):
        if len(self.got) == self._break_at:
            raise RuntimeError("no more space.\nsecond line")
        self.got.append((step, numbers))

    def close(self):
        self.ended = True


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Follows a run folder with a tracker: `with follow(tracker, step):`."""
    write(tmp_path, ("start", 0, {"n_params": 7, "config": {}}))

    def follow(tracker, step=0):
        monkeypatch.setattr(track, "TRACKERS", {"trackio": tracker.start})
        return track.following(TrainConfig(track="trackio"), tmp_path, step)

    return follow


def write(run, *events):
    for event, step, fields in events:
        metrics.write(run / "metrics.jsonl", event, step, **fields)


def test_numbers_are_handed_over_in_order_and_nothing_else(tmp_path, follow):
    tracker = Tracker()
    with follow(tracker):
        write(tmp_path, ("train", 1, {"loss": 2.5, "lr": 0.1}), ("skip", 2, {"loss": float("nan"), "loss_scale": 2.0}))
        write(tmp_path, ("sample", 2, {"text": "a"}), ("save", 2, {"path": "step"}), ("eval", 2, {"val_loss": 2}))
        write(tmp_path, ("test", 1, {"loss": 3.0}), ("end", 2, {"elapsed_s": 1.0}))
    assert tracker.got == [
        (1, {"train/loss": 2.5, "train/lr": 0.1}),
        (2, {"skip/loss_scale": 2.0}),
        (2, {"eval/val_loss": 2}),
        (1, {"test/loss": 3.0}),
    ]
    assert tracker.ended and tracker.started[0][1] == 0


def test_a_resumed_run_goes_on_under_its_id_where_the_rewound_log_goes_on(tmp_path, follow):
    log, first = tmp_path / "metrics.jsonl", Tracker()
    with follow(first):
        write(tmp_path, *(("train", step, {"loss": step}) for step in (1, 2, 3)), ("test", 2, {"loss": 1}))
    metrics.rewind(log, 2)
    second = Tracker()
    with follow(second, step=2):
        write(tmp_path, ("train", 3, {"loss": 3}), ("train", 4, {"loss": 4}))
    assert [step for step, _ in second.got] == [3, 4]
    assert second.started == [(first.started[0][0], 3)]


def test_what_a_tracker_has_missed_it_gets_at_the_next_resume(tmp_path, follow):
    broken, whole = Tracker(break_at=0), Tracker()
    for tracker in (broken, whole):
        with follow(tracker):
            write(tmp_path, ("train", 1, {"loss": 1}))
    assert [step for step, _ in whole.got] == [1, 1]
    third = Tracker()
    with follow(third):
        pass
    assert third.got == []


def test_a_new_run_in_the_same_folder_is_another_one(tmp_path, follow):
    first, second = Tracker(), Tracker()
    with follow(first):
        write(tmp_path, ("train", 1, {"loss": 1}))
    metrics.rewind(tmp_path / "metrics.jsonl", -1)
    with follow(second):
        write(tmp_path, ("train", 1, {"loss": 1}))
    assert first.started[0][0] != second.started[0][0] and second.got == first.got


def test_a_tracker_that_fails_is_told_once_in_one_line(tmp_path, follow, capsys):
    with follow(Tracker(break_at=1)):
        write(tmp_path, *(("train", step, {"loss": step}) for step in (1, 2, 3)))
    assert capsys.readouterr().out == "NOTE: --track trackio has failed: no more space; the run goes on\n"


def test_an_error_of_the_run_is_not_hidden_by_a_tracker_that_hangs(tmp_path, follow, monkeypatch):
    monkeypatch.setattr(track, "LAST_SECONDS", 0.01)
    never, tracker = threading.Event(), Tracker()
    tracker.close = never.wait
    with pytest.raises(KeyError), follow(tracker):
        raise KeyError
    never.set()


HANGS = """
import atexit, threading
from gpt2_mlx.training import track
track.LAST_SECONDS = 0.2
never = threading.Event()
atexit.register(never.wait)
threading.Thread(target=never.wait).start()  # an interpreter waits for it

def init(**_):
    never.wait()
"""


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "raise ModuleNotFoundError('No module named trackio')",
            "needs a package (No module named trackio): pip install",
        ),
        ("def init(**_): raise SystemExit(1)", "has failed: 1; the run goes on"),
        (HANGS, "has not ended after 0.2 s and is left behind"),
    ],
)
def test_whatever_a_tracker_does_costs_a_line_and_not_the_run(text, tmp_path, source, line):
    (tmp_path / "trackio.py").write_text(source)
    arguments = trained.command(text, tmp_path / "run", track="trackio", max_steps=2)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(arguments, cwd=trained.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (told,) = [told for told in done.stdout.splitlines() if "NOTE: --track trackio" in told]
    assert line in told and "Traceback" not in done.stderr
    assert metrics.read(tmp_path / "run" / "metrics.jsonl")[-1]["event"] == "end"
    assert (tmp_path / "run" / "loss.png").exists()


def test_tensorboard_shows_a_run_that_was_killed_and_resumed_as_one(tmp_path):
    log, config = tmp_path / "metrics.jsonl", TrainConfig(track="tensorboard")
    write(tmp_path, ("start", 0, {}))
    with track.following(config, tmp_path, 0):
        write(tmp_path, *(("train", step, {"loss": 5 / step}) for step in range(1, 8)))
        write(tmp_path, ("eval", 0, {"val_loss": 9.5}), ("eval", 7, {"val_loss": float("nan")}))
    metrics.rewind(log, 4)
    with track.following(config, tmp_path, 4):
        write(tmp_path, *(("train", step, {"loss": 7 / step}) for step in range(5, 9)), ("eval", 8, {"val_loss": 0.5}))
        write(tmp_path, ("test", 6, {"loss": 0.6}))
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(shown.Tags()["scalars"]) == ["eval/val_loss", "test/loss", "train/loss"]
    for event, name in (("train", "loss"), ("eval", "val_loss"), ("test", "loss")):
        logged = [(e["step"], pytest.approx(e[name])) for e in metrics.read(log) if e["event"] == event]
        assert [(scalar.step, scalar.value) for scalar in shown.Scalars(f"{event}/{name}")] == logged
