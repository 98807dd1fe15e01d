"""What transformers and mlx-lm have saved, opened here."""

import json

import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import checkpoint, pretrained

from .conftest import SHAPES, greedy, logits, some_tokens, torch_greedy, torch_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_greedy_text_equal_those_of_transformers(foreign, shape):
    theirs, folder = foreign(**SHAPES[shape])
    ours = checkpoint.load(pretrained.find(folder))
    tokens = some_tokens(ours)
    assert np.abs(logits(ours, tokens) - torch_logits(theirs, tokens)).max() < 1e-4
    half = ours.config.block_size // 2
    for row in tokens[:, :half].tolist():
        assert greedy(ours, row, half) == torch_greedy(theirs, row, half)


def test_computing_keys_in_another_order_changes_nothing(foreign):
    theirs, folder = foreign(**SHAPES["narrow"], reorder_and_upcast_attn=True)
    ours = checkpoint.load(folder)
    assert np.abs(logits(ours, some_tokens(ours)) - torch_logits(theirs, some_tokens(ours))).max() < 1e-4


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_what_is_refused_would_give_other_logits(foreign, activation):
    theirs, folder = foreign(**SHAPES["narrow"], activation_function=activation)
    with pytest.raises(ValueError, match=f"activation_function is '{activation}'"):
        checkpoint.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_function": "gelu_new"}))
    ours = checkpoint.load(folder)
    assert np.abs(logits(ours, some_tokens(ours)) - torch_logits(theirs, some_tokens(ours))).max() > 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files(foreign, tmp_path, dtype):
    theirs, _ = foreign(**SHAPES["narrow"])
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    ours = checkpoint.load(tmp_path)
    assert ours.dtype == mx.float32
    # the weights are rounded, the computation is not
    assert np.abs(logits(ours, some_tokens(ours)) - torch_logits(theirs.float(), some_tokens(ours))).max() < 1e-4
    assert checkpoint.load(tmp_path, dtype=None).dtype == getattr(mx, dtype)


def test_shards_with_an_index(foreign, tmp_path):
    theirs, _ = foreign(**SHAPES["narrow"])
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert not (tmp_path / "model.safetensors").exists() and len(list(tmp_path.glob("model-*"))) > 2
    ours = checkpoint.load(tmp_path)
    assert np.abs(logits(ours, some_tokens(ours)) - torch_logits(theirs, some_tokens(ours))).max() < 1e-4


def test_without_a_prefix_with_masks_and_a_stored_head(foreign):
    """As openai-community/gpt2 is stored, and older files with both masks and the head."""
    theirs, folder = foreign(**SHAPES["narrow"])
    theirs.transformer.save_pretrained(folder)
    path = str(folder / "model.safetensors")
    weights = mx.load(path)
    assert "wte.weight" in weights
    n = SHAPES["narrow"]["n_positions"]
    for i in range(SHAPES["narrow"]["n_layer"]):
        weights[f"h.{i}.attn.bias"] = mx.tri(n)[None, None]
        weights[f"h.{i}.attn.masked_bias"] = mx.array(-1e4)
    weights["lm_head.weight"] = weights["wte.weight"]
    mx.eval(weights)
    mx.save_safetensors(path, weights)
    ours = checkpoint.load(folder)
    assert np.abs(logits(ours, some_tokens(ours)) - torch_logits(theirs, some_tokens(ours))).max() < 1e-4


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_what_mlx_lm_converts(foreign, tmp_path, bits):
    mlx_lm = pytest.importorskip("mlx_lm")
    _, folder = foreign(**SHAPES["text"])
    checkpoint.save(tmp_path / "ours", checkpoint.load(folder))  # a tokenizer beside it
    mlx_lm.convert(str(tmp_path / "ours"), str(tmp_path / "theirs"), quantize=bits is not None, q_bits=bits)
    theirs, _ = mlx_lm.load(str(tmp_path / "theirs"))
    ours = checkpoint.load(pretrained.find(tmp_path / "theirs"), dtype=None)
    assert (ours.quantization or {}).get("bits") == bits
    tokens = some_tokens(ours)
    assert np.abs(logits(ours, tokens) - np.array(theirs(mx.array(tokens)).astype(mx.float32))).max() < 1e-4
