"""`gpt2-mlx replay`: what it refuses, and what it tells."""

import mlx.core as mx
import pytest
from client import COMPLETIONS
from replayed import BLOCK, run_replay

from gpt2_mlx import checkpoint
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2
from gpt2_mlx.pretrained import LoadConfig


@pytest.fixture(scope="module")
def receipt(answering) -> dict:
    """One that holds but for its texts."""
    from gpt2_mlx.serving import receipts

    how = receipts.versions(LoadConfig(device="cpu", dtype="float32"))
    return {
        "route": COMPLETIONS,
        "request": {"prompt": "a", "seed": 1, "max_tokens": 2, "temperature": 0},
        "checkpoint": str(answering),
        "sha256": receipts.sha256(answering),
        "versions": how.model_dump(),
        "texts": [{"tokens": [1, 2], "finish_reason": "length", "sha256": "0"}],
    }


@pytest.mark.parametrize(
    "change, told",
    [
        ({"texts": []}, "texts"),
        ({"sha256": None}, "sha256"),
        ({"sha256": "0"}, "it must be that of the receipt"),
        ({"route": "/x"}, "route"),
        ({"more": 1}, "more"),
        ({"checkpoint": "/nowhere"}, "/nowhere"),
        ({"request": {"prompt": "a", "seed": 1, "topk": 1}}, "topk is not a field"),
        ({"request": {"prompt": "a"}}, "no seed"),
        ({"request": {"prompt": "a", "seed": 1, "n": 2}}, "1 texts, but its request asks for 2"),
        ({"request": {"prompt": [[60000]], "seed": 1}}, "token ids must be"),
        ({"request": {"prompt": "a", "seed": 1, "structured_outputs": {"regex": "("}}}, "error"),
    ],
)
def test_a_receipt_that_cannot_be_run_is_told_in_a_line(replayed, receipt, change, told):
    status, line = replayed(receipt | change)
    assert status == 2 and told in line


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"route": "\\ud800"}'])
def test_what_is_no_receipt_is_told_in_a_line(replayed, content):
    status, line = replayed(content)
    assert status == 2 and "is no receipt" in line


def test_a_receipt_that_lacks_a_field_names_it(replayed, receipt):
    for name in receipt:
        status, line = replayed({key: value for key, value in receipt.items() if key != name})
        assert status == 2 and name in line


def test_no_file_and_another_checkpoint(replayed, receipt, monkeypatch, capsys, tmp_path):
    assert run_replay(monkeypatch, capsys, tmp_path / "none.json")[0] == 2
    checkpoint.save(tmp_path / "other", GPT2(GPT2Config(block_size=BLOCK, n_layer=1, n_head=1, n_embd=8), seed=2))
    status, line = replayed(receipt, "--checkpoint", tmp_path / "other")
    assert status == 2 and "it must be that of the receipt" in line
    assert replayed(receipt | {"checkpoint": "gone"}, "--checkpoint", receipt["checkpoint"])[0] == 1


def test_what_computes_otherwise_is_told(replayed, receipt):
    status, line = replayed(receipt | {"versions": receipt["versions"] | {"mlx": "0.0.1"}})
    assert status == 1 and line.endswith(f"mlx was 0.0.1 and is {mx.__version__}")
