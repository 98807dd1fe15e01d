import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from gpt2_mlx import layout
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2

CONFIG = GPT2Config(block_size=10, vocab_size=61, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def model() -> GPT2:
    return GPT2(CONFIG, seed=5)


def same(a: dict[str, mx.array], model: GPT2) -> bool:
    b = dict(tree_flatten(model.parameters()))
    return a.keys() == b.keys() and all((np.array(a[name]) == np.array(b[name])).all() for name in a)


def prefixed(tensors: dict, prefix: str) -> dict:
    return {prefix + name: array for name, array in tensors.items()}


def test_names_with_and_without_a_prefix_masks_and_a_head_that_is_tied(model):
    tensors = layout.tensors(model)
    masks = {f"h.{i}.attn.bias": mx.tri(10) for i in range(2)} | {"h.1.attn.masked_bias": mx.array(-1e4)}
    head = {"lm_head.weight": tensors["wte.weight"]}
    for prefix in ("", "transformer."):
        assert same(layout.parameters(prefixed(tensors, prefix), model), model)
        assert same(layout.parameters(prefixed(tensors | masks, prefix) | head, model), model)


def test_mlx_lms_names_mean_matrices_as_mlx_has_them(model):
    tensors = prefixed(dict(tree_flatten(model.parameters())), "model.")
    assert tensors["model.h.0.attn.c_attn.weight"].shape == (96, 32)
    assert same(layout.parameters(tensors, model), model)


def test_a_quantised_model_is_stored_as_mlx_lm_stores_it(model):
    model.quantize(4)
    tensors = layout.tensors(model)
    assert tensors["model.h.0.attn.c_attn.weight"].shape == (96, 32 * 4 // 32)
    assert tensors["model.wte.scales"].shape == (61, 1)
    assert tensors["model.wpe.weight"].shape == (10, 32)
    assert same(layout.parameters(tensors, model), model)
    fields = layout.config_fields(model)
    assert layout.read_quantization(fields) == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert layout.read_config(fields) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"lm_head.weight": t["wte.weight"] + 1}), r"lm_head\.weight is not wte\.weight"),
        (lambda t: t.update({"lm_head.weight": mx.zeros((60, 32))}), r"lm_head\.weight is not wte\.weight"),
        (lambda t: t.update({"h.2.attn.bias": mx.tri(10)}), r"h\.2\.attn\.bias is not expected"),
        (lambda t: t.update({"transformer.wte.weight": t["wte.weight"]}), r"transformer\.wpe\.weight is missing"),
        (lambda t: t.update({"wpe.weight": mx.zeros((10, 32), mx.int32)}), r"wpe\.weight is mlx\.core\.int32, not"),
        (lambda t: t.pop("wte.weight"), r"wte\.weight is missing"),
        (lambda t: t.clear(), r"wte\.weight is missing; .* and 23 more"),
        # a matrix's shape is told as it is stored
        (lambda t: t.update({"h.0.mlp.c_fc.weight": mx.zeros((128, 32))}), r"is \(128, 32\), not \(32, 128\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(model, change, message):
    tensors = layout.tensors(model)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        layout.parameters(tensors, model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type is 'gpt_neo'; it must be 'gpt2'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; this model has 'gelu_new'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06; this model has 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False; this model has True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"n_inner": 100}, "n_inner is 100; this model has 4 n_embd, which is 128"),
        ({"n_embd": None}, "n_embd is None; it must be a whole number"),
        ({"n_layer": "2"}, "n_layer is '2'; it must be a whole number"),
    ],
)
def test_a_config_that_means_another_model_is_refused(model, fields, message):
    with pytest.raises(ValueError, match=message):
        layout.read_config(layout.config_fields(model) | fields)


def test_what_does_not_change_the_mathematics_is_allowed(model):
    harmless = {
        "reorder_and_upcast_attn": True,
        "n_inner": 128,
        "use_cache": False,
        "activation_function": "gelu_pytorch_tanh",
    }
    assert layout.read_config(layout.config_fields(model) | harmless) == CONFIG


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization": {"bits": 4}},
        {"quantization": {"bits": 1, "group_size": 64}},
        {"quantization": {"bits": 4, "group_size": [64]}},
        {"quantization": {"bits": 4, "group_size": 64, "mode": "mxfp4"}},
        {"quantization": {"bits": 4, "group_size": 64, "model.wte": {"bits": 8, "group_size": 64}}},
        {"quantization": 4},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_a_quantisation_that_is_not_supported_is_refused(fields):
    with pytest.raises(ValueError, match="^quantization"):
        layout.read_quantization(fields)
