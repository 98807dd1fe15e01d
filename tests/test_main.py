"""python -m gpt2_mlx, as a user types it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from gpt2_mlx import GPT2, GPT2Config, checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "step-00000001"
    checkpoint.save(folder, GPT2(GPT2Config(block_size=32, n_layer=1, n_head=1, n_embd=32)))
    return folder


def run(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "gpt2_mlx", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)


def test_generate_writes_the_texts_and_tells_the_speed_apart(folder):
    flags = ("--checkpoint", folder, "--max-tokens", 8, "-n", 2, "--seed", 5)
    done = run("generate", "KING RICHARD II:", *flags)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("\n---\n")
    assert first.startswith("KING RICHARD II:") and second.startswith("KING RICHARD II:")
    assert first != second.rstrip("\n")
    assert "seed 5" in done.stderr and "tokens/s" in done.stderr and done.stderr.count("\n") == 1
    assert run("generate", "KING RICHARD II:", *flags).stdout == done.stdout


def test_generate_quantised_and_in_half_precision(folder):
    flags = ("--max-tokens", 4, "--seed", 5)
    for more in (("--quantize", 8), ("--dtype", "bfloat16"), ("--quantize", 4, "--dtype", "float16")):
        done = run("generate", "KING", "--checkpoint", folder, *flags, *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("KING")


def test_convert_writes_a_folder_that_opens(folder, tmp_path):
    done = run("convert", folder, tmp_path / "new" / "half", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'new' / 'half'}: float16, " in done.stdout
    half = checkpoint.load(tmp_path / "new" / "half", dtype=None)
    assert half.dtype == mx.float16
    whole = checkpoint.load(folder, "float16")
    assert (half(mx.array([[1, 2]])) == whole(mx.array([[1, 2]]))).all()
    done = run("convert", tmp_path / "new" / "half", tmp_path / "q4", "--quantize", 4)
    assert "float16, matrices in 4 bits" in done.stdout
    assert checkpoint.load(tmp_path / "q4", dtype=None).quantization["bits"] == 4
    assert not list(tmp_path.glob(".*"))


def test_convert_writes_a_gguf_file(folder, tmp_path):
    done = run("convert", folder, tmp_path / "new" / "m.gguf", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'new' / 'm.gguf'}: GGUF, matrices in float16, " in done.stdout
    assert (tmp_path / "new" / "m.gguf").read_bytes()[:4] == b"GGUF"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.gguf"]


def test_convert_adds_a_card(folder, tmp_path):
    assert run("convert", folder, tmp_path / "poet", "--card").returncode == 0
    card = (tmp_path / "poet" / "README.md").read_text()
    assert "# poet\n" in card and 'gpt2_mlx.load("poet")' in card
    done = run("convert", folder, tmp_path / "poet.gguf", "--card")
    assert done.returncode == 2 and "--card writes README.md into a folder" in done.stderr


def test_convert_overwrites_nothing(folder, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for there in (tmp_path, tmp_path / "mine"):
        done = run("convert", folder, there)
        assert done.returncode == 2
        assert f"{there} exists already" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_closed_pipe_is_no_error(folder):
    endless = "--max-tokens 1000000"  # more than the pipe holds until somebody closes it
    command = f"{sys.executable} -m gpt2_mlx generate hello --checkpoint {folder} {endless} | head -c 5"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("hello", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "required"),
        (["generate", "a", "--top-p", "2"], "top_p is 2.0; it must be at least 0 and at most 1"),
        (["generate", "a", "--n", "many"], "--n"),
        (["translate", "a"], "translate"),
        (["generate", "a", "--quantize", "3"], "--quantize"),
        (["convert", "nowhere", "new"], "nowhere is neither a checkpoint"),
        (["convert", "a"], "required"),
        (["convert", "a", "b.gguf", "--quantize", "8", "--dtype", "float16"], "--dtype is float16, but --quantize 8"),
        (["generate", "a", "--checkpoint", "nowhere"], "nowhere is neither a checkpoint"),
    ],
)
def test_a_mistake_is_one_line(folder, words, message):
    if words[0] == "generate" and "--checkpoint" not in words and len(words) > 1:
        words = [*words, "--checkpoint", folder]
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert message in done.stderr


def test_without_a_run_it_says_what_to_do(tmp_path):
    done = run("generate", "a", cwd=tmp_path)
    assert done.returncode == 2
    assert "train one first with `python -m gpt2_mlx train`" in done.stderr
