import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx import device, elementwise
from gpt2_mlx.corpus.loader import IGNORE
from gpt2_mlx.training.loss import cross_entropy, cross_entropy_by_token


def plain(hidden, wte, targets):
    losses = nn.losses.cross_entropy(hidden @ wte.T, mx.maximum(targets, 0))
    return mx.sum(mx.where(targets == IGNORE, 0, losses))


@pytest.fixture(params=[1, 3, 4, 7, 100], ids=lambda rows: f"{rows}_rows")
def rows(request, monkeypatch):
    """Chunks of these many rows: 7 tokens in one, in several, in ragged ones."""
    monkeypatch.setattr(device, "logits_rows", lambda vocab_size: request.param)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0], ids=["flat", "peaked", "very_peaked"])
def test_equals_the_plain_formula_in_value_and_gradient(rows, compiled, scale):
    random = np.random.RandomState(1)
    hidden = mx.array(random.standard_normal((7, 16)).astype(np.float32))
    wte = mx.array((scale * random.standard_normal((211, 16))).astype(np.float32))
    targets = mx.array([3, 210, 0, IGNORE, 3, 17, 17])
    ours = mx.value_and_grad(lambda h, w: 0.5 * cross_entropy(h, w, targets)[0], argnums=(0, 1))
    theirs = mx.value_and_grad(lambda h, w: 0.5 * plain(h, w, targets), argnums=(0, 1))
    value, gradients = (mx.compile(ours) if compiled else ours)(hidden, wte)
    expected, expected_gradients = theirs(hidden, wte)
    assert abs(value.item() - expected.item()) < 1e-5 * max(1, abs(expected.item()))
    for got, want in zip(gradients, expected_gradients):
        assert mx.abs(got - want).max().item() < 2e-5 * mx.abs(want).max().item()


def test_counts_what_is_not_ignored_and_evaluates_alike():
    random = np.random.RandomState(2)
    hidden, wte = mx.array(random.rand(2, 5, 8)), mx.array(random.rand(30, 8))
    targets = mx.array([[1, 2, IGNORE, 4, 5], [IGNORE] * 5])
    loss, count = cross_entropy(hidden, wte, targets)
    assert count.item() == 4
    by_token = np.array(cross_entropy_by_token(hidden, wte, targets))
    assert by_token.shape == (2, 5)
    assert ((by_token > 0) == (np.array(targets) != IGNORE)).all()
    assert by_token.sum() == pytest.approx(loss.item(), rel=1e-6)
    nothing, none = cross_entropy(hidden, wte, mx.full((2, 5), IGNORE))
    assert (nothing.item(), none.item()) == (0, 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_head_that_does_not_learn_changes_neither_loss_nor_the_other_gradient(rows, compiled):
    hidden, wte = mx.random.normal((7, 16), key=mx.random.key(1)), mx.random.normal((211, 16), key=mx.random.key(2))
    targets = mx.array([3, 210, 0, IGNORE, 3, 17, 17])
    both = mx.value_and_grad(lambda h, w: 0.5 * cross_entropy(h, w, targets)[0], argnums=(0, 1))
    one = mx.value_and_grad(lambda h: 0.5 * cross_entropy(h, wte, targets, learns_wte=False)[0])
    loss, gradient = (mx.compile(one) if compiled else one)(hidden)
    expected, (expected_gradient, _) = (mx.compile(both) if compiled else both)(hidden, wte)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert mx.allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.cpu("a GPU holds larger parts")
def test_never_holds_all_logits():
    n, vocab_size = 4096, 50257
    hidden, wte = mx.random.normal((n, 8)), mx.random.normal((vocab_size, 8))
    targets = mx.zeros((n,), mx.int32)
    mx.eval(hidden, wte, targets)
    before = mx.get_active_memory()  # other tests' arrays may not be let go yet
    mx.reset_peak_memory()
    step = mx.compile(mx.value_and_grad(lambda h, w: cross_entropy(h, w, targets)[0], argnums=(0, 1)))
    mx.eval(step(hidden, wte))
    assert mx.get_peak_memory() - before < n * vocab_size * 4 / 2  # the plain formula takes three times all logits


@given(st.lists(st.floats(-(2.0**100), 0, width=32), min_size=1, max_size=50))
def test_exp_is_as_exact_as_it_says(xs):
    x = np.array(xs, np.float32)
    got = np.array(elementwise.exp_of_negative(mx.array(x))).astype(np.float64)
    want = np.exp(x.astype(np.float64))
    assert (np.abs(got - want)[x >= -20] <= 1e-5 * want[x >= -20]).all()
    assert (np.abs(got - want) <= 1e-5 * want + 2e-14).all()
    assert (got >= 0).all()


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_softmax_and_its_gradient_are_those_of_its_formula(xs, seed):
    random = np.random.RandomState(seed)
    cotangent, ruled_out = random.randn(len(xs)), random.rand(len(xs)) < 0.3
    ruled_out[random.randint(len(xs))] = False
    x = np.where(ruled_out, -np.inf, np.array(xs))
    e = np.exp(x - x.max())
    want = e / e.sum()
    got, (slope,) = mx.vjp(elementwise.softmax, [mx.array(x, mx.float32)], [mx.array(cotangent, mx.float32)])
    np.testing.assert_allclose(np.array(got[0]), want, rtol=3e-5, atol=1e-13)
    assert (np.array(got[0])[ruled_out] == 0).all()
    np.testing.assert_allclose(
        np.array(slope), want * (cotangent - want @ cotangent), atol=1e-5 * np.abs(cotangent).max()
    )
