import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2
from gpt2_mlx.training import optim
from gpt2_mlx.training.config import TrainConfig

SHAPE = GPT2Config(block_size=4, vocab_size=11, n_layer=2, n_head=1, n_embd=6)


ONE = mx.array(1.0)


def build(config: TrainConfig, model: GPT2):
    return optim.build(config, model, [mx.default_stream(mx.cpu)])


def settings(**fields) -> TrainConfig:
    return TrainConfig(
        **{"learning_rate": 1e-2, "optimizer": "adamw", "warmup_steps": 4, "max_steps": 20, **fields}
    ).resolved(False)


def flat(model: GPT2) -> dict[str, np.ndarray]:
    return {name: np.array(p).astype(np.float64) for name, p in tree_flatten(model.parameters())}


def random_gradients(model: GPT2, step: int) -> dict:
    return tree_map(lambda p: mx.random.normal(p.shape, key=mx.random.key(step * 1000 + p.size)), model.parameters())


def test_learning_rate_at_first_warm_up_and_last_step():
    config = settings(min_lr=1e-3)
    rates = [optim.learning_rate(step, config) for step in range(config.max_steps)]
    assert rates[0] == pytest.approx(1e-2 / 4)  # the first step learns
    assert rates[3] == pytest.approx(1e-2)  # the end of the warm-up is the peak
    assert rates[11] == pytest.approx((1e-2 + 1e-3) / 2)  # half of the cosine: 8 of 16 steps
    assert rates[-1] == pytest.approx(1e-3)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert optim.learning_rate(99, config) == pytest.approx(1e-3)  # resumed beyond its end


def test_learning_rate_without_warm_up():
    config = settings(warmup_steps=0, max_steps=1)
    assert optim.learning_rate(0, config) == pytest.approx(config.min_lr)


@pytest.mark.parametrize("compiled", [False, True])
def test_adamw_equals_numpy_and_decays_matrices_only_and_has_the_epsilon_for_tokens(compiled):
    config = settings(weight_decay=0.3, beta2=0.95, epsilon=1e-3)
    model = GPT2(SHAPE)
    optimizer = build(config, model)
    parameters, m, v = flat(model), {}, {}
    state = [model.state, optimizer.state]

    def update(gradients, rate):
        sums = tree_map(lambda g: 7 * g, gradients)
        return optim.guarded_update(model, optimizer, sums, mx.array(7.0), rate, 1.0)

    update = mx.compile(update, inputs=state, outputs=state) if compiled else update
    for step in range(1, 4):
        gradients = random_gradients(model, step)
        rate = 0.01 * step
        norm, taken = update(gradients, mx.array(rate))
        g = {name: np.array(x).astype(np.float64) for name, x in tree_flatten(gradients)}
        expected_norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        assert norm.item() == pytest.approx(expected_norm, rel=1e-5)
        assert taken.item()
        for name, p in parameters.items():
            x = g[name] / expected_norm  # clipped to 1
            m[name] = 0.9 * m.get(name, 0) + 0.1 * x
            v[name] = 0.95 * v.get(name, 0) + 0.05 * x**2
            p = p * (1 - rate * (0.3 if p.ndim == 2 else 0))
            epsilon = 1e-3 if name == "wte.weight" else 1e-8
            parameters[name] = p - rate * (m[name] / (1 - 0.9**step)) / (np.sqrt(v[name] / (1 - 0.95**step)) + epsilon)
    for name, p in flat(model).items():
        assert np.abs(p - parameters[name]).max() < 1e-5, name


def test_the_norm_of_millions_of_elements_is_exact():
    model = GPT2(GPT2Config(block_size=4, vocab_size=8192, n_layer=1, n_head=1, n_embd=512))
    gradients = random_gradients(model, 1)
    norm, _ = optim.guarded_update(model, build(settings(), model), gradients, ONE, mx.array(0.0), 1.0)
    squares = [np.square(np.array(g).astype(np.float64)).sum() for _, g in tree_flatten(gradients)]
    assert norm.item() == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


def test_muon_moves_along_an_orthogonal_matrix_at_adamws_scale():
    config = settings(optimizer="muon", weight_decay=0.0)
    model = GPT2(SHAPE)
    optimizer = build(config, model)
    before = flat(model)
    gradients = random_gradients(model, 1)
    optim.guarded_update(model, optimizer, gradients, ONE, mx.array(0.01), 0)
    after, given = flat(model), dict(tree_flatten(gradients))
    for name, p in before.items():
        if optim.group(name, mx.array(p), "muon") != "muon":
            continue
        moved = (p - after[name]) / (0.01 * 0.2 * math.sqrt(max(p.shape)))
        singular = np.linalg.svd(moved, compute_uv=False)
        assert (0.5 < singular).all() and (singular < 1.5).all(), name  # Newton-Schulz is rough on purpose
        u, _, vt = np.linalg.svd(np.array(given[name]), full_matrices=False)
        assert (moved * (u @ vt)).sum() / np.linalg.norm(moved) / np.linalg.norm(u @ vt) > 0.95, name


def test_muon_decays_what_it_updates():
    model = GPT2(SHAPE)
    optimizer = build(settings(optimizer="muon", weight_decay=0.5), model)
    before = flat(model)
    optim.guarded_update(model, optimizer, tree_map(mx.zeros_like, model.parameters()), ONE, mx.array(0.1), 0)
    for name, p in flat(model).items():
        factor = 1 - 0.1 * 0.5 if p.ndim == 2 else 1
        assert np.allclose(p, before[name] * factor, atol=1e-7), name


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_each_parameter_is_in_one_group(rule):
    model = GPT2(SHAPE)
    groups = {name: optim.group(name, p, rule) for name, p in tree_flatten(model.parameters())}
    plain = {name for name in groups if name.endswith("bias") or "ln_" in name}
    assert {name for name, group in groups.items() if group == "plain"} == plain
    hidden = {name for name in groups if name.startswith("h.")} - plain
    assert {name for name, group in groups.items() if group == "muon"} == (hidden if rule == "muon" else set())
    states = [dict(tree_flatten(state)) for state in build(settings(optimizer=rule), model).state["states"]]
    owned = [name.rsplit(".", 1)[0] for state in states for name in state if name.endswith(".v")]
    assert sorted(owned) == sorted(groups)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(bad, rule):
    model = GPT2(SHAPE)
    optimizer = build(settings(optimizer=rule), model)
    optim.guarded_update(model, optimizer, random_gradients(model, 1), ONE, mx.array(0.01), 1.0)
    weights = flat(model)
    moments = {name: np.array(x) for name, x in tree_flatten(optimizer.state) if "learning_rate" not in name}
    gradients = random_gradients(model, 2)
    gradients["ln_f"]["bias"][0] = bad
    norm, taken = optim.guarded_update(model, optimizer, gradients, ONE, mx.array(0.02), 1.0)
    assert not taken.item() and not math.isfinite(norm.item())
    assert all((p == weights[name]).all() for name, p in flat(model).items())
    after = dict(tree_flatten(optimizer.state))
    assert all((np.array(after[name]) == x).all() for name, x in moments.items())
