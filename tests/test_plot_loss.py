"""The door plot_loss.py, in a process of its own."""

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

from gpt2_mlx import metrics

ROOT = Path(__file__).parents[1]


def plot_loss(cwd: Path, *words: str) -> subprocess.CompletedProcess:
    words = [sys.executable, str(ROOT / "plot_loss.py"), *words]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd)


def make_run(path: Path) -> None:
    path.mkdir(parents=True)
    log = functools.partial(metrics.write, path / "metrics.jsonl")
    log("start", 0, tokens={"train": 9}, bytes={"train": 30})
    log("train", 1, loss=2.0, elapsed_s=1.0)


def test_without_a_run_it_draws_the_newest(tmp_path):
    for name, age in (("old", 100), ("new", 0)):
        make_run(tmp_path / "checkpoints" / name)
        log = tmp_path / "checkpoints" / name / "metrics.jsonl"
        os.utime(log, (time.time() - age, time.time() - age))
    done = plot_loss(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "checkpoints/new/loss.png"
    assert (tmp_path / "checkpoints" / "new" / "loss.png").exists()


def test_several_runs_into_one_file(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    assert plot_loss(tmp_path, "a", "b", "--out", "both.svg", "--x", "time", "--y", "bits-per-byte").returncode == 0
    assert (tmp_path / "both.svg").read_text().startswith("<?xml")


def test_a_difference_goes_beside_the_second_runs_curve(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    done = plot_loss(tmp_path, "a", "b", "--difference")
    assert done.stdout.strip() == "b/difference.png", done.stderr
    assert (tmp_path / "b" / "difference.png").exists() and not (tmp_path / "a" / "loss.png").exists()


def test_mistakes_are_one_line(tmp_path):
    for words, message in (([], "there is no run under checkpoints/"), (["--x", "hours"], "invalid choice 'hours'")):
        done = plot_loss(tmp_path, *words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and message in done.stderr
