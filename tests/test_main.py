"""python -m gpt2_mlx, as a user types it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_mlx import GPT2, GPT2Config, checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "step-00000001"
    checkpoint.save(folder, GPT2(GPT2Config(block_size=32, n_layer=1, n_head=1, n_embd=8)))
    return folder


def run(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "gpt2_mlx", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)


def test_generate_writes_the_texts_and_tells_the_speed_apart(folder):
    flags = ("--checkpoint", folder, "--max-tokens", 8, "--n", 2, "--seed", 5)
    done = run("generate", "KING RICHARD II:", *flags)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("\n---\n")
    assert first.startswith("KING RICHARD II:") and second.startswith("KING RICHARD II:")
    assert first != second.rstrip("\n")
    assert "seed 5" in done.stderr and "tokens/s" in done.stderr and done.stderr.count("\n") == 1
    assert run("generate", "KING RICHARD II:", *flags).stdout == done.stdout


def test_a_closed_pipe_is_no_error(folder):
    command = f"{sys.executable} -m gpt2_mlx generate hello --checkpoint {folder} --max-tokens 2000 | head -c 5"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("hello", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "required"),
        (["generate", "a", "--top-p", "2"], "top_p is 2.0; it must be at least 0 and at most 1"),
        (["generate", "a", "--n", "many"], "--n"),
        (["translate", "a"], "translate"),
        (["generate", "a", "--checkpoint", "nowhere"], "nowhere is neither a checkpoint"),
    ],
)
def test_a_mistake_is_one_line(folder, words, message):
    if "--checkpoint" not in words and len(words) > 1:
        words = [*words, "--checkpoint", folder]
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert message in done.stderr


def test_without_a_run_it_says_what_to_do(tmp_path):
    done = run("generate", "a", cwd=tmp_path)
    assert done.returncode == 2
    assert "train one first with `python train.py`" in done.stderr
