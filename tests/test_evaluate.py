"""gpt2-mlx evaluate."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2_mlx import GPT2, GPT2Config, checkpoint, folders, tokenizer
from gpt2_mlx.commands.evaluate import Evaluate, score
from gpt2_mlx.training import evaluation, hellaswag

ROOT = Path(__file__).parents[1]
VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate.\n" * 8
ITEM = json.dumps(
    {"ctx": "A man is on a roof. he", "endings": ["sings", "is a roof", "eats", "rips tiles"], "label": 1}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, and beside it a text and two items of HellaSwag."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint.save(folder / "model", GPT2(GPT2Config(block_size=32, n_layer=1, n_head=1, n_embd=32)))
    (folder / "verse.txt").write_text(VERSE)
    (folder / "val.jsonl").write_text(f"{ITEM}\n{ITEM}\n")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "data", lambda: tmp_path)


def told(folder: Path, **flags) -> dict:
    return score(Evaluate(checkpoint=str(folder / "model"), **flags, device="cpu"))


@pytest.mark.parametrize(("split", "first", "last"), [("all", 0, 10), ("test", 9, 10), ("val", 8, 9)])
def test_scores_the_part_of_the_text_that_is_asked_for(folder, split, first, last):
    encoding = tokenizer.load()
    tokens = np.array(encoding.encode_ordinary(VERSE))
    part = tokens[len(tokens) * first // 10 : len(tokens) * last // 10]
    expected = evaluation.score_text(checkpoint.load(folder / "model"), encoding, part, 16)
    found = told(folder, data=str(folder / "verse.txt"), split=split, stride=16)["text"]
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert (found["tokens"], found["bytes"]) == (expected.tokens, expected.bytes)
    assert (found["name"], found["split"], found["block_size"], found["stride"]) == ("verse", split, 32, 16)
    assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)


def test_half_precision_costs_a_little(folder):
    full, half = (told(folder, data=str(folder / "verse.txt"), dtype=d) for d in ("float32", "bfloat16"))
    assert half["dtype"] == "bfloat16"
    assert full["text"]["loss"] != half["text"]["loss"]
    assert full["text"]["loss"] == pytest.approx(half["text"]["loss"], rel=1e-2)


def test_a_quantised_model_is_told_with_its_bits(folder, tmp_path):
    verse = str(folder / "verse.txt")
    asked = told(folder, data=verse, quantize=4)
    checkpoint.save(tmp_path / "model", checkpoint.load(folder / "model", quantize=4))
    stored = told(tmp_path, data=verse)
    assert asked["bits"] == stored["bits"] == 4
    assert asked["text"]["loss"] == pytest.approx(stored["text"]["loss"], rel=1e-6)
    plain = told(folder, data=verse)
    assert plain["bits"] is None
    assert plain["text"]["loss"] != pytest.approx(asked["text"]["loss"], rel=1e-6)


def test_hellaswag_alone_and_with_a_text(folder):
    path, verse = folder / "val.jsonl", str(folder / "verse.txt")
    found = told(folder, hellaswag=path)
    score = hellaswag.score(checkpoint.load(folder / "model"), tokenizer.load(), hellaswag.read(path))
    assert "text" not in found
    assert found["hellaswag"]["items"] == 2
    assert (found["hellaswag"]["acc"], found["hellaswag"]["acc_norm"]) == (score.acc, score.acc_norm)
    assert {"text", "hellaswag"} < set(told(folder, data=verse, hellaswag=path))


def test_a_loss_that_is_no_number_is_told_as_such(folder, tmp_path):
    model = checkpoint.load(folder / "model")
    model.ln_f.weight = model.ln_f.weight * 1e38  # its logits are more than a float holds
    checkpoint.save(tmp_path / "model", model)
    assert "loss:          not finite" in run(tmp_path / "model", "--data", folder / "verse.txt").stdout
    assert told(tmp_path, data=str(folder / "verse.txt"))["text"]["loss"] is None


def run(*words: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "gpt2_mlx", "evaluate", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)


def test_the_lines_are_on_stdout_and_nothing_else(folder):
    done = run(folder / "model", "--data", folder / "verse.txt", "--hellaswag", folder / "val.jsonl")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        *("text", "loss", "perplexity", "bits per byte", "hellaswag")
    ]
    assert "verse, split test" in done.stdout and "windows of 32 tokens every 32" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --data, --hellaswag or both"),
        (["--data", "nowhere"], "--data is 'nowhere', which is no file or folder"),
        (["--data", "verse.txt", "--stride", 33], "--stride is 33; it must be at least 1 and at most"),
        (["--hellaswag", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--data", "verse.txt", "--batch-size", 0], "--batch-size is 0"),
    ],
)
def test_a_mistake_is_one_line(folder, words, message):
    done = run(folder / "model", *(folder / word if word == "verse.txt" else word for word in words))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert message in done.stderr
