import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from gpt2_mlx import device
from gpt2_mlx import model as model_module
from gpt2_mlx.config import PRESETS, GPT2Config
from gpt2_mlx.doctor import reference
from gpt2_mlx.model import GPT2, dropout, gelu
from gpt2_mlx.training.loss import cross_entropy

RANDOM = np.random.RandomState(0)


def jittered(config: GPT2Config) -> GPT2:
    """A model none of whose parameters is at its initial zero or one."""
    model = GPT2(config, seed=3)
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape, key=mx.random.key(p.size)), model.parameters()))
    return model


def as_float64(model: GPT2) -> dict[str, np.ndarray]:
    return {name: np.array(p, dtype=np.float64) for name, p in tree_flatten(model.parameters())}


def some_tokens(config: GPT2Config, batch: int = 2) -> np.ndarray:
    return RANDOM.randint(0, config.vocab_size, (batch, config.block_size))


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(block_size=10, vocab_size=61, n_layer=3, n_head=2, n_embd=12),
        GPT2Config(block_size=33, vocab_size=500, n_layer=2, n_head=4, n_embd=64),
        GPT2Config(block_size=1, vocab_size=2, n_layer=1, n_head=1, n_embd=1),
    ],
)
def test_logits_equal_the_float64_reference(config):
    model, tokens = jittered(config), some_tokens(config)
    expected = reference.logits(as_float64(model), tokens, config.n_layer, config.n_head)
    got = np.array(model(mx.array(tokens)))
    assert got.shape == (2, config.block_size, config.vocab_size)
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-5


def test_gelu_and_its_slope_are_those_of_its_formula():
    x = np.concatenate([np.linspace(-12, 12, 4801), [-1e30, -40, 40, 1e30]])
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = 0.5 * (1 + np.tanh(u)) + 0.5 * x / np.cosh(np.clip(u, -99, 99)) ** 2 * np.sqrt(2 / np.pi) * (
        1 + 3 * 0.044715 * x**2
    )
    y, got = mx.vjp(gelu, [mx.array(x, mx.float32)], [mx.ones(len(x))])
    assert np.abs(np.array(y[0]) - 0.5 * x * (1 + np.tanh(u)))[:-4].max() < 2e-6
    assert np.abs(np.array(got[0]) - slope)[:-4].max() < 1e-5
    assert np.array(y[0])[-4:].tolist() == [0, 0, 40, np.float32(1e30)]
    assert mx.all(mx.isnan(gelu(mx.array([np.nan])))).item()


def test_gradients_equal_the_reference_along_random_directions(small):
    model, tokens = jittered(small), some_tokens(small)
    targets = some_tokens(small)
    targets[0, 3:5] = -1  # do not count

    def loss(t, y):
        return cross_entropy(model.hidden(t), model.wte.weight, y)[0]

    _, gradients = nn.value_and_grad(model, loss)(mx.array(tokens), mx.array(targets))
    gradients = dict(tree_flatten(gradients))
    parameters = as_float64(model)
    for name, p in parameters.items():
        direction = RANDOM.standard_normal(p.shape)
        step = 1e-5

        def moved(by, name=name, p=p, direction=direction):
            return reference.loss(
                {**parameters, name: p + by * direction}, tokens, targets, small.n_layer, small.n_head
            )

        expected = (moved(step) - moved(-step)) / (2 * step)
        got = (np.array(gradients[name], dtype=np.float64) * direction).sum()
        scale = np.linalg.norm(gradients[name]) * np.linalg.norm(direction)
        assert abs(got - expected) < 1e-5 * max(scale, 1), name


def test_a_changed_token_moves_no_earlier_output_and_every_later_one(small):
    model, tokens = jittered(small), some_tokens(small, 1)
    before = np.array(model(mx.array(tokens)))
    at = 4
    tokens[0, at] = (tokens[0, at] + 1) % small.vocab_size
    after = np.array(model(mx.array(tokens)))
    moved = np.abs(after - before).max(-1)[0]
    assert (moved[:at] == 0).all()
    assert (moved[at:] > 0).all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_packed_text_has_the_logits_and_the_gradients_that_it_has_alone(small, monkeypatch, fused, recompute):
    if not fused:
        monkeypatch.setattr(model_module, "_NO_GRADIENT", small.block_size)
    model, tokens = jittered(small), mx.array(some_tokens(small))
    lengths = [[3, 1, 6], [5, 5]]
    starts = mx.array([np.repeat(np.cumsum([0, *row[:-1]]), row).tolist() for row in lengths])  # (2, 10)

    def run(tokens, starts=None):
        def loss(tokens):
            hidden = model.hidden(tokens, recompute=recompute, starts=starts)
            return mx.sum(model.wte.as_linear(hidden) ** 2), model.wte.as_linear(hidden)

        (_, logits), gradients = nn.value_and_grad(model, loss)(tokens)
        return logits, gradients

    packed, gradients = run(tokens, starts)
    alone = []
    for row, sizes in enumerate(lengths):
        for start, size in zip(np.cumsum([0, *sizes]).tolist(), sizes):
            logits, own = run(tokens[row : row + 1, start : start + size])
            assert mx.abs(packed[row, start : start + size] - logits[0]).max().item() < 1e-5
            alone.append(own)
    for (name, found), *others in zip(tree_flatten(gradients), *map(tree_flatten, alone)):
        expected = sum(gradient for _, gradient in others)
        assert mx.abs(found - expected).max().item() < 1e-4 * mx.abs(expected).max().item() + 1e-4, name


def test_initial_loss_is_that_of_a_guess():
    config = GPT2Config(block_size=32, vocab_size=1000, n_layer=2, n_head=2, n_embd=32)
    model, tokens = GPT2(config), mx.array(some_tokens(config, 8))
    loss, count = cross_entropy(model.hidden(tokens), model.wte.weight, mx.array(some_tokens(config, 8)))
    assert abs((loss / count).item() - np.log(1000)) < 0.1


def test_initial_parameters_follow_the_table():
    model = GPT2(GPT2Config(block_size=64, vocab_size=300, n_layer=8, n_head=2, n_embd=128))
    for name, p in tree_flatten(model.parameters()):
        p = np.array(p)
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name
        else:
            std = 0.02 / 4 if "c_proj" in name else 0.02  # sqrt(2 * 8 layers) = 4
            n = p.size
            assert abs(p.std() / std - 1) < 5 / np.sqrt(2 * n), name  # five standard errors
            assert abs(p.mean()) < 5 * std / np.sqrt(n), name


def test_initial_weights_follow_from_the_seed(small):
    def weights(seed):
        return np.array(GPT2(small, seed).h[1].mlp.c_fc.weight)

    assert (weights(1) == weights(1)).all()
    assert (weights(1) != weights(2)).any()


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("gpt2", 124.439808), ("gpt2-medium", 354.823168), ("gpt2-large", 774.030080), ("gpt2-xl", 1557.611200)],
)
def test_presets_have_the_published_sizes(preset, millions):
    assert GPT2(PRESETS[preset]).n_params == round(millions * 1e6)  # lazy: no weight is ever drawn


def test_tokens_and_lengths_out_of_range_raise(small):
    model = GPT2(small)
    for bad in (-1, small.vocab_size):
        with pytest.raises(ValueError, match=rf"{bad}.*0, {small.vocab_size - 1}"):
            model(mx.array([[0, bad]]))
    with pytest.raises(ValueError, match="11 tokens do not fit.*10"):
        model(mx.zeros((1, small.block_size + 1), mx.int32))
    for shape in ((3,), (1, 0)):
        with pytest.raises(ValueError, match="must be integers"):
            model(mx.zeros(shape, mx.int32))
    with pytest.raises(ValueError, match="must be integers"):
        model(mx.zeros((1, 2)))
    assert model(mx.array([[0, small.vocab_size - 1]])).shape == (1, 2, small.vocab_size)


def test_works_inside_compile(small):
    model, tokens = GPT2(small), mx.array(some_tokens(small))
    assert mx.allclose(mx.compile(model)(tokens), model(tokens), atol=1e-6)


def test_dropout_keeps_the_mean_and_follows_the_key():
    x = mx.ones((200, 500))
    key = mx.random.key(1)
    y = np.array(dropout(x, 0.2, key))
    assert set(np.unique(y)) == {0, np.float32(1.25)}
    assert abs(y.mean() - 1) < 5 * 0.5 / np.sqrt(y.size)  # each element's deviation is 0.5
    assert (y == np.array(dropout(x, 0.2, key))).all()
    assert (y != np.array(dropout(x, 0.2, mx.random.key(2)))).any()
    assert (dropout(x, 0.2, None) == x).all()


def test_dropout_in_the_model_needs_a_key_and_differs_by_layer(small):
    model = jittered(dataclasses.replace(small, dropout=0.5))
    tokens = mx.array(some_tokens(small))
    plain = model(tokens)
    assert (plain == model(tokens)).all()
    first = model(tokens, mx.random.key(0))
    assert (first == model(tokens, mx.random.key(0))).all()
    assert not mx.allclose(first, plain)
    assert not mx.allclose(first, model(tokens, mx.random.key(1)))


def test_attention_with_dropout_equals_the_fused_one_as_it_vanishes(small, monkeypatch):
    model, tokens = jittered(small), mx.array(some_tokens(small))
    vanishing = GPT2(dataclasses.replace(small, dropout=1e-9))
    vanishing.update(model.parameters())
    dropped = vanishing(tokens, mx.random.key(0))
    monkeypatch.setattr(device, "is_scalar", lambda: False)  # Linux's CPU does not fuse
    assert mx.allclose(dropped, model(tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, "n_embd is 10.*n_head, which is 3"),
        ({"n_layer": 0}, "n_layer is 0.*at least 1"),
        ({"block_size": 1.5}, "block_size is 1.5"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"dropout": 1.0}, "dropout is 1.0.*less than 1"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**fields)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("masks", ["keyed", "drawn"])
def test_recomputed_activations_drop_the_same_elements(small, monkeypatch, compiled, masks):
    model = jittered(dataclasses.replace(small, dropout=0.3))
    parameters, tokens = model.parameters(), mx.arange(20).reshape(2, 10)

    def gradients(recompute):
        def loss(parameters):
            model.update(parameters)
            return mx.sum(mx.square(model.hidden(tokens, mx.random.key(3), recompute=recompute)))

        mx.random.seed(3)
        gradient = mx.compile(mx.grad(loss)) if compiled else mx.grad(loss)
        return tree_flatten(gradient(parameters))

    if masks == "drawn":  # the plain way, from the global state: the backward pass draws others
        monkeypatch.setattr(model_module, "dropout", lambda x, p, key: nn.Dropout(p)(x))
    kept, remade = gradients(False), dict(gradients(True))
    same = all(np.allclose(g, remade[name], rtol=1e-5, atol=1e-6) for name, g in kept)
    assert same == (masks == "keyed")


@pytest.mark.parametrize(("n_embd", "group_size"), [(64, 64), (96, 32)])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_matrices_round_to_the_nearest_of_their_groups_levels(n_embd, group_size, bits):
    model = GPT2(GPT2Config(block_size=5, vocab_size=7, n_layer=1, n_head=2, n_embd=n_embd))
    before = {name: np.array(p) for name, p in tree_flatten(model.parameters())}
    model.quantize(bits)
    assert model.quantization == {"group_size": group_size, "bits": bits, "mode": "affine"}
    assert model.dtype == mx.float32
    quantised = {"wte", *(f"h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))}
    after = dict(tree_flatten(model.parameters()))
    assert {name.removesuffix(".scales") for name in after if name.endswith(".scales")} == quantised
    for name in before:
        module = name.removesuffix(".weight")
        if module not in quantised:
            assert (np.array(after[name]) == before[name]).all(), name
            continue
        rounded = mx.dequantize(after[name], after[f"{module}.scales"], after[f"{module}.biases"], group_size, bits)
        groups = before[name].reshape(-1, group_size)
        level = (groups.max(-1) - groups.min(-1)) / (2**bits - 1)
        error = np.abs(np.array(rounded) - before[name]).reshape(-1, group_size).max(-1)
        assert (error < 1.1 * level).all(), name


def test_what_cannot_be_quantised_is_named(small):
    with pytest.raises(ValueError, match="n_embd is 12; to be quantised it must be a multiple of 32"):
        GPT2(small).quantize(4)


def test_few_tokens_are_learnt_from_where_the_fused_kernel_has_no_gradient(small, monkeypatch):
    fused = mx.fast.scaled_dot_product_attention

    def metals(q, *arguments, **options):
        assert q.shape[2] > 8, "Metal throws"
        return fused(q, *arguments, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", metals)
    model, tokens = GPT2(small), mx.arange(8)[None]
    expected = reference.logits(
        {name: np.array(p, np.float64) for name, p in tree_flatten(model.parameters())}, np.arange(8)[None], 3, 2
    )
    assert np.abs(np.array(model(tokens)) - expected).max() < 1e-5
    gradients = nn.value_and_grad(model, lambda tokens: mx.sum(model(tokens) ** 2))(tokens)[1]
    assert all(mx.isfinite(g).all() for _, g in tree_flatten(gradients))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_gelu_and_its_slope_round_once_in_16_bits(dtype):
    x = mx.linspace(-4, 4, 2001).astype(dtype)
    exact = np.array(x.astype(mx.float32), np.float64)
    tanh = np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3))
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * exact**2)
    once = 2.0**-8 if dtype == mx.bfloat16 else 2.0**-11
    for got, want in (
        (gelu(x), 0.5 * exact * (1 + tanh)),
        (mx.grad(lambda x: mx.sum(gelu(x)))(x), 0.5 * (1 + tanh + exact * (1 - tanh**2) * slope)),
    ):
        assert (np.abs(np.array(got.astype(mx.float32)) - want) <= 1.01 * once * np.abs(want) + 3e-6).all()
