"""Runs that begin from a checkpoint of another run."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from events import check
from trained import ROOT, begin, final_bytes, read_to_step, train

from gpt2_mlx import checkpoint, metrics
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.settle import settle


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = train(text, run, keep=100)
    assert done.returncode == 0, done.stderr
    return run


def arguments(*words: object) -> list[str]:
    return [sys.executable, "train.py", *map(str, words)]


def door(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(arguments(*words), capture_output=True, text=True, cwd=ROOT)


def events(run: Path, event: str) -> list[dict]:
    return [e for e in metrics.read(run / "metrics.jsonl") if e["event"] == event]


@pytest.fixture(scope="module")
def fork(undisturbed) -> Path:
    """A fork that changes nothing."""
    done = door("--fork", f"{undisturbed}@24")
    assert done.returncode == 0, done.stderr
    return undisturbed.with_name("undisturbed-fork-24")


@pytest.mark.cpu("a GPU may sum in another order")
def test_a_fork_that_changes_nothing_ends_with_the_same_bytes(undisturbed, fork):
    assert final_bytes(fork) == final_bytes(undisturbed)
    losses = [{e["step"]: e["loss"] for e in events(run, "train")} for run in (undisturbed, fork)]
    assert losses[1] == {step: loss for step, loss in losses[0].items() if step > 24}
    assert events(fork, "test")[0]["loss"] == events(undisturbed, "test")[0]["loss"]


def test_a_fork_tells_where_it_comes_from(undisturbed, fork):
    check(fork / "metrics.jsonl")
    (start,), (former,) = events(fork, "start"), events(undisturbed, "start")
    files = ("model.safetensors", "optimizer.safetensors")
    digests = {name: sha256((undisturbed / "step-00000024" / name).read_bytes()).hexdigest() for name in files}
    assert start["step"] == 24
    assert start["fork"] == {"run": str(undisturbed), "step": 24, "sha256": digests}
    facts = json.loads((fork / "train.json").read_text())
    assert facts["fork"] == start["fork"]
    assert {name for name, value in facts["config"].items() if value != former["config"][name]} == {"fork", "out"}
    assert former["fork"] is None


def test_a_fork_that_was_killed_goes_on_exactly(undisturbed, tmp_path):
    changes = ["--fork", f"{undisturbed}@24", "--without", "verse.txt:4-90", "--learning-rate", "0.01"]
    whole, killed, early = (tmp_path / name for name in ("whole", "killed", "early"))
    done = door(*changes, "--out", whole)
    assert done.returncode == 0, done.stderr
    assert re.search(r"without verse.txt:4-90: \d+ of the train tokens have no weight in the loss", done.stdout)
    assert final_bytes(whole) != final_bytes(undisturbed)
    with begin(arguments(*changes, "--out", killed)) as process:
        read_to_step(process, 33)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    early.mkdir()  # killed before its first checkpoint
    facts = json.loads((whole / "train.json").read_text())
    (early / "train.json").write_text(json.dumps(facts))
    for run in (killed, early):
        done = door("--resume", "--out", run)
        assert done.returncode == 0, done.stderr
        assert final_bytes(run) == final_bytes(whole)
        assert json.loads((run / "train.json").read_text())["fork"] == facts["fork"]
    message = "--without is verse.txt:4-91, but the run to resume was started with verse.txt:4-90"
    refused = door("--resume", "--out", whole, "--without", "verse.txt:4-91", "--max-steps", "41")
    assert refused.returncode == 2 and message in refused.stderr


def test_the_best_weights_so_far_come_along(undisturbed, tmp_path):
    spoilt = tmp_path / "spoilt"
    done = door("--fork", f"{undisturbed}@24", "--learning-rate", "50", "--out", spoilt)
    assert done.returncode == 0, done.stderr
    assert "(weights of step 20)" in done.stdout
    assert (spoilt / "best").resolve().name == "step-00000020"
    assert not checkpoint.is_whole(spoilt / "best")
    before = [e["val_loss"] for e in events(undisturbed, "eval") if e["step"] == 20]
    assert abs(events(spoilt, "test")[0]["loss"] - before[0]) < 0.5  # not those that were spoilt
    assert door("--fork", f"{spoilt}@best").returncode == 2


@pytest.mark.cpu("a GPU may sum in another order")
def test_a_fork_without_the_best_weights_goes_on_the_same(undisturbed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed, copy, symlinks=True)
    shutil.rmtree(copy / "step-00000020")
    done = door("--fork", f"{copy}@24")
    assert done.returncode == 0, done.stderr
    assert f"NOTE: {copy} no longer has its best weights, of step 20" in done.stdout
    assert final_bytes(tmp_path / "copy-fork-24") == final_bytes(undisturbed)


def settled(**given):
    return settle(TrainConfig(**given), lambda former: dataclasses.replace(former, **given))


def test_what_a_fork_may_change(undisturbed, tmp_path):
    given = {
        "out": str(tmp_path / "run"),
        "seed": 2,
        "dropout": 0.0,
        "max_steps": 50,
        "learning_rate": 1e-3,
        "without": ("verse.txt:1-9",),
    }
    chosen = settled(fork=f"{undisturbed}@24", **given)
    before = TrainConfig(**events(undisturbed, "start")[0]["config"])
    changes = {"fork": f"{undisturbed}@24", **given}
    assert chosen.config == dataclasses.replace(before, **changes)
    assert 0 < chosen.dataset.n_ignored < len(chosen.dataset.split("train"))


@pytest.mark.parametrize("which", ["", "@latest", "@40"])
def test_the_checkpoint_to_begin_from(undisturbed, which):
    chosen = settled(fork=f"{undisturbed}{which}", max_steps=50)
    assert (chosen.origin.step, chosen.config.fork) == (40, f"{undisturbed}@40")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_embd": 16}, "--n-embd is 16, but the run to fork was started with 8"),
        ({"block_size": 8}, "--block-size is 8, but the run to fork was started with 16"),
        ({"batch_size": 4}, "--batch-size is 4, but the run to fork was started with 2"),
        ({"optimizer": "adamw"}, "--optimizer is adamw, but the run to fork"),
        ({"init_from": "gpt2"}, "--init-from is gpt2, but the run to fork"),
        ({"max_steps": 24}, "--max-steps is 24, but the fork begins at step 24 already"),
        ({"minutes": 3.0}, "--minutes is 3, but a fork has the steps of its run"),
        ({"without": ["verse.txt"]}, "--without is verse.txt, which holds all of the tokens"),
        ({"fork": "{run}@23"}, "has no such checkpoint to go on from; it has those of step 4, 8, 12,"),
        ({"fork": "{run}/latest"}, "latest is no run: it holds no train.json"),
        ({"fork": "nowhere@best"}, "--fork is nowhere@best, but nowhere is no run"),
    ],
)
def test_what_a_fork_cannot_change_is_refused(undisturbed, tmp_path, given, message):
    given = {"fork": "{run}@24", "out": str(tmp_path / "run")} | given
    with pytest.raises(ValueError) as refused:
        settled(**given | {"fork": given["fork"].format(run=undisturbed)})
    assert message in str(refused.value)


def test_a_fork_overwrites_no_run_and_reads_the_same_text(undisturbed, fork, tmp_path):
    again = door("--fork", f"{undisturbed}@24")
    assert again.returncode == 2
    assert f"{fork} holds a run already: go on with --resume, or choose another folder with --out" in again.stderr
    (tmp_path / "other.txt").write_text("Another text, " * 400)
    other = door("--fork", f"{undisturbed}@24", "--data", tmp_path / "other.txt", "--out", tmp_path / "run")
    assert other.returncode == 2
    assert f"other.txt is not the text that {undisturbed} began to learn from" in other.stderr
    assert not (tmp_path / "run").exists()
