import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import tokenizer
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.sampling import generate, sample
from gpt2_mlx.model import GPT2

LOGITS = mx.log(mx.array([0.1, 0.4, 0.2, 0.3]))


def drawn(n: int, **how) -> np.ndarray:
    """How often each of the four tokens was drawn in n draws, as a share."""
    tokens = [sample(LOGITS, key=mx.random.key(i), **how).item() for i in range(n)]
    return np.bincount(tokens, minlength=4) / n


def test_temperature_zero_is_the_most_likely():
    assert drawn(5, temperature=0, top_k=0).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"temperature": 1.0, "top_k": 0}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 1.0, "top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_k": 1}, [0, 1, 0, 0]),
        ({"temperature": 0.5, "top_k": 0}, np.array([1, 16, 4, 9]) / 30),  # squared
    ],
)
def test_frequencies_are_the_probabilities(how, expected):
    n = 1500
    error = 4 * np.sqrt(np.array(expected) * (1 - np.array(expected)) / n)  # four standard errors
    assert (np.abs(drawn(n, **how) - expected) <= error).all()


def test_a_text_follows_from_its_seed_and_runs_past_block_size():
    encoding = tokenizer.load()
    model = GPT2(GPT2Config(block_size=8, n_layer=1, n_head=1, n_embd=8))
    text = generate(model, encoding, "To be, or", max_tokens=12, seed=1)
    assert text.startswith("To be, or")
    assert text == generate(model, encoding, "To be, or", max_tokens=12, seed=1)
    assert text != generate(model, encoding, "To be, or", max_tokens=12, seed=2)
    assert generate(model, encoding, "To be, or", max_tokens=6, seed=1) in text
    assert generate(model, encoding, "", max_tokens=3)
