import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.rows import Row
from gpt2_mlx.generation.sampling import FEW, MANY, penalised, sample, uniform
from gpt2_mlx.generation.scheduler import Sequence

P = np.array([0.1, 0.4, 0.2, 0.3])
LOGITS = mx.log(mx.array(P.astype(np.float32)))


def row(prompt=(0,), generated=(), **params) -> Row:
    params = {"temperature": 1.0, "top_k": 0, **params}
    made = Sequence(0, list(prompt), SamplingParams(**params), block_size=64)
    made.generated = list(generated)
    return Row(made)


def shares(logits: mx.array, draws: int = 1000, **params) -> np.ndarray:
    """The share of evenly spaced draws in [0, 1) that gives each token."""
    rows = [row(**params)] * draws
    tokens = sample(mx.broadcast_to(logits, (draws, logits.size)), rows, [(i + 0.5) / draws for i in range(draws)])
    return np.bincount(np.array(tokens), minlength=logits.size) / draws


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, P),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.1}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 99}, P),
        ({"top_p": 0.0}, [0, 1, 0, 0]),  # at least one
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),  # of the two left, the first has 4/7
        ({"min_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.6, "top_k": 3, "top_p": 0.9}, [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_the_share_of_draws_is_the_probability(params, expected):
    assert np.abs(shares(LOGITS, **params) - expected).max() < 2e-3


@pytest.mark.parametrize(
    "params",
    [{"top_k": FEW}, {"top_k": FEW + 1}, {"top_k": MANY + 1}, {"top_p": 0.5}, {"top_p": 0.99}, {"min_p": 0.05}],
)
def test_every_way_of_drawing_draws_the_same_shares(params):
    V = 3000  # more than FEW chunks
    logits = np.random.RandomState(0).standard_normal(V).astype(np.float32) * 2
    p = np.exp(logits - logits.max())
    order = np.argsort(-p)
    p[order[params.get("top_k", V) :]] = 0
    p /= p.sum()
    likelier = np.zeros(V)
    likelier[order] = np.cumsum(p[order]) - p[order]
    p[(likelier >= params.get("top_p", 1.1)) | (p < params.get("min_p", 0) * p.max())] = 0
    got = shares(mx.array(logits), draws=20_000, **params)
    assert np.abs(got - p / p.sum()).max() < 2e-4
    assert (got[p == 0] == 0).all()


def test_rows_do_not_feel_each_other():
    random = np.random.RandomState(1)
    logits = mx.array(random.standard_normal((7, 300)).astype(np.float32))
    rows = [
        row(**p) for p in ({}, {"temperature": 0}, {"top_k": 5}, {"top_k": 200}, {"top_p": 0.5}, {"min_p": 0.2}, {})
    ]
    draws = random.rand(7).tolist()
    together = sample(logits, rows, draws).tolist()
    assert together == [sample(logits[i : i + 1], rows[i : i + 1], draws[i : i + 1]).item() for i in range(7)]


def test_penalties_and_biases():
    logits = mx.array([[2.0, -2.0, 1.0, 3.0], [2.0, -2.0, 1.0, 3.0]])
    rows = [
        row(prompt=[0], generated=[1, 1], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25),
        row(logit_bias={3: -100.0}),
    ]
    assert penalised(logits, rows).tolist() == [[1.0, -5.0, 1.0, 3.0], [2.0, -2.0, 1.0, -97.0]]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31))
def test_a_draw_is_a_function_of_seed_and_position(seed, position):
    assert 0 <= uniform(seed, position) < 1
    assert uniform(seed, position) == uniform(seed, position)


def test_draws_are_pinned_and_even():
    assert [uniform(1, 0), uniform(1, 1), uniform(2, 0)] == [
        0.3035680055618286,
        0.9002684354782104,
        0.48891550302505493,
    ]
    many = np.array([uniform(7, i) for i in range(4000)])
    assert np.abs(np.histogram(many, 10, (0, 1))[0] - 400).max() < 4 * np.sqrt(400 * 0.9)


@pytest.mark.parametrize(
    "params", [{"top_p": 0.9}, {"top_p": 0.99}, {"top_k": 50}, {"top_k": 300, "top_p": 0.8}], ids=str
)
def test_in_16_bits_rows_do_not_feel_each_other_either(params):
    """Logits with few values, hence many ties; some rows look at few tokens, the flat one at all of them."""
    V = 3000
    scales = np.array([8.0, 4.0, 0.01, 6.0])[:, None]
    logits = mx.array(np.random.RandomState(0).standard_normal((4, V)) * scales).astype(mx.bfloat16).astype(mx.float32)
    rows, draws = [row(**params) for _ in range(4)], [0.99, 0.7, 0.5, 0.3]
    together = sample(logits, rows, draws).tolist()
    for i in range(4):
        assert sample(logits[i : i + 1], rows[i : i + 1], draws[i : i + 1]).tolist() == [together[i]]


@pytest.mark.parametrize("k", [5, 100, 2000])
def test_of_equally_likely_tokens_those_with_the_smallest_ids_come_first(k):
    logits = mx.zeros(3000).at[1234].add(1.0)
    drawn = shares(logits, draws=400, top_k=k)
    assert set(np.flatnonzero(drawn)) <= {1234, *range(k - 1)}
    assert drawn[1234] > 0


def test_a_dropped_token_is_never_drawn_though_sums_are_not_monotone(monkeypatch):
    """As on Metal, whose sums may rise over a column without a weight."""
    cumsum = mx.cumsum
    monkeypatch.setattr(mx, "cumsum", lambda p, axis: cumsum(p, axis=axis) + mx.where(p == 0, 1e-3, 0))
    logits = mx.array(np.random.RandomState(0).standard_normal(500).astype(np.float32))
    best = set(np.argsort(-np.array(logits))[:3].tolist())
    drawn = shares(logits, draws=5000, top_k=3)
    assert set(np.flatnonzero(drawn)) == best


@pytest.mark.parametrize("temperature", [1e-46, 1e-40, 1e-39, 1e-38, 1e-30])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    assert shares(LOGITS, draws=50, temperature=temperature).tolist() == [0, 1, 0, 0]
