"""Several processes that train together, as a user starts them."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from trained import ROOT, begin, command, final_bytes, read_to_step, train

from gpt2_mlx import metrics
from gpt2_mlx.training import ranks
from gpt2_mlx.training.config import TrainConfig


def free_ports(n: int) -> list[int]:
    """Neighbours that nobody holds, below those that a system hands out by itself."""
    while True:
        first = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + n):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(first, first + n))


def launch(arguments: list[str]) -> subprocess.CompletedProcess:
    """Two processes under mlx.launch, to their end."""
    launcher = [Path(sys.executable).with_name("mlx.launch"), "-n", "2", "--backend", "ring"]
    launcher += ["-p", str(free_ports(2)[0]), "--"]
    return subprocess.run(
        [*launcher, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )


def start(arguments: list[str], folder: Path, n: int = 2) -> list[subprocess.Popen]:
    """The same, started by hand: each with its number and the addresses of all."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(n)]))
    environment = os.environ | {"MLX_HOSTFILE": str(hosts)}
    return [begin(arguments, environment | {"MLX_RANK": str(rank)}) for rank in range(n)]


def losses(run: Path) -> list[float]:
    told = [e for e in metrics.read(run / "metrics.jsonl") if e["event"] in ("train", "eval", "test")]
    return [e.get("loss", e.get("val_loss")) for e in told]


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "alone"
    done = train(text, run, grad_accum_steps=2)
    assert done.returncode == 0, done.stderr
    return run


def test_two_processes_equal_one_with_twice_the_accumulation_bit_for_bit(alone, text, tmp_path):
    done = launch(command(text, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("step     40/40") == 1  # one of them tells
    assert final_bytes(tmp_path / "two") == final_bytes(alone)
    assert losses(tmp_path / "two") == losses(alone)


def test_two_processes_begin_with_the_same_weights(alone, text, tmp_path):
    flags = {"init_from": alone, "max_steps": 2, "eval_interval": 2}
    done = launch(command(text, tmp_path / "two", **flags))
    assert done.returncode == 0, done.stderr
    flags["grad_accum_steps"] = 2
    assert train(text, tmp_path / "one", **flags).returncode == 0
    assert losses(tmp_path / "two") == losses(tmp_path / "one")


def test_two_processes_of_several_micro_batches_equal_one_up_to_the_order_of_sums(text, tmp_path):
    flags = {"grad_accum_steps": 6, "max_steps": 3, "eval_interval": 3}
    done = launch(command(text, tmp_path / "two", **flags))
    assert done.returncode == 0, done.stderr
    assert train(text, tmp_path / "one", **flags).returncode == 0
    two, one = (mx.load(str(tmp_path / name / "latest" / "model.safetensors")) for name in ("two", "one"))
    assert all(np.abs(np.array(p) - np.array(two[name])).max() <= 1e-6 for name, p in one.items())
    assert np.allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6)


def test_two_processes_settle_on_the_steps_that_the_first_has_time_for(text, tmp_path):
    arguments = command(text, tmp_path / "two", minutes=0.1)[1:]
    arguments = [word for i, word in enumerate(arguments) if "--max-steps" not in arguments[max(0, i - 1) : i + 1]]
    code = f"""
import sys
from gpt2_mlx import cli
from gpt2_mlx.commands import train
from gpt2_mlx.training import budget, ranks
measure = budget.measure
def measured(*arguments):
    measure(*arguments)
    return budget.Seconds(0, 1 + ranks.rank(), 0, 0, 0, 0, 0)
budget.measure = measured
sys.argv = {arguments!r}
cli.run(train.main)
"""
    done = launch([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert "--minutes 0.1 holds 6 steps of 1 s" in done.stdout
    assert metrics.read(tmp_path / "two" / "metrics.jsonl")[-1]["step"] == 6


@pytest.mark.parametrize(("interrupted", "name", "status"), [(0, "SIGINT", 130), (1, "SIGTERM", 143)])
def test_interrupted_in_one_process_all_stop_together_and_one_goes_on_alone(
    alone, text, tmp_path, interrupted, name, status
):
    run = tmp_path / "run"
    both = start(command(text, run, save_interval=1000), tmp_path)
    read_to_step(both[0])
    both[interrupted].send_signal(getattr(signal, name))
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [status, status], outputs
    assert f"stopped by {name} at step" in outputs[0][0]
    assert outputs[1][0] == ""
    assert metrics.read(run / "metrics.jsonl")[-1]["reason"] == name
    assert (run / "latest").resolve().name != "step-00000040"
    assert train(text, run, "--resume").returncode == 0
    assert final_bytes(run) == final_bytes(alone)


@pytest.mark.parametrize("dead", [0, 1])
def test_the_death_of_one_ends_the_other_with_a_line_and_the_run_goes_on(alone, text, tmp_path, dead):
    run = tmp_path / "run"
    both = start(command(text, run), tmp_path)
    read_to_step(both[0])
    both[dead].kill()
    outputs = [process.communicate(timeout=600) for process in both]
    assert both[dead].returncode == -signal.SIGKILL
    assert both[1 - dead].returncode == 1
    errors = outputs[1 - dead][1]  # where MLX's ring writes too, at any time
    assert errors.count(f"process {1 - dead} of 2 ends, for it cannot go on without the others") == 1
    assert "Traceback" not in errors
    done = launch(command(text, run, "--resume"))
    assert done.returncode == 0, done.stderr
    assert final_bytes(run) == final_bytes(alone)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_processes_share_out_the_micro_batches_of_one_alone(monkeypatch, size):
    monkeypatch.setattr(ranks, "size", lambda: size)
    numbers = []
    for step, rank in itertools.product(range(3), range(size)):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        own = ranks.own_micro_batches(step, 6 // size)
        assert len(own) == 6 // size
        numbers += own
    assert numbers == list(range(3 * 6))


def test_a_step_that_cannot_be_shared_out_is_refused():
    assert TrainConfig(preset="tiny").resolved(False, processes=3).grad_accum_steps == 3
    with pytest.raises(ValueError, match="--grad-accum-steps is 4; it must be a multiple of the number of processes"):
        TrainConfig(grad_accum_steps=4).resolved(False, processes=3)


def test_a_process_alone_is_a_group_of_one():
    tree = {"a": mx.arange(3.0), "b": [mx.array(2.0)]}
    assert (ranks.rank(), ranks.size(), ranks.here(), ranks.is_first()) == (0, 1, 1, True)
    assert ranks.mean(tree)["a"] is tree["a"]
    assert ranks.share(tree)["b"][0].item() == 2
    assert ranks.ask_first(lambda: {"step": 3, "best": None, "é": [0.1]}) == {"step": 3, "best": None, "é": [0.1]}
    assert [ranks.agree(reason) for reason in (None, "SIGTERM")] == [None, "SIGTERM"]
    assert (ranks.in_turn(lambda: 5), ranks.largest(5)) == (5, 5)
    with pytest.raises(RuntimeError, match="another fault"), ranks.together():
        raise RuntimeError("another fault")
