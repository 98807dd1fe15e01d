import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2
from gpt2_mlx.training import precision


def test_the_blocks_are_lowered_and_the_embeddings_are_not(small):
    lowered = dict(tree_flatten(precision.lowered(GPT2(small).parameters(), "bfloat16")))
    kept = {name for name, p in lowered.items() if p.dtype == mx.float32}
    assert kept == {"wte.weight", "wpe.weight"}
    assert all(lowered[name].dtype == mx.bfloat16 for name in set(lowered) - kept)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_gradient_of_a_token_that_is_read_often_is_whole(small, dtype):
    model = GPT2(small)
    parameters, tokens = model.parameters(), mx.full((400, 10), 7)  # bfloat16 adds up 256 ones of these 4,000

    def loss(parameters, dtype):
        model.update(precision.lowered(parameters, dtype))
        hidden = model.hidden(tokens)
        assert model.dtype == getattr(mx, dtype)
        return mx.sum(hidden * mx.arange(12))

    got, want = (mx.grad(loss)(parameters, name)["wte"]["weight"][7] for name in (dtype, "float32"))
    assert mx.abs(got - want).max() < 0.05 * mx.abs(want).max()


def test_rounding_does_not_add_up_from_block_to_block():
    model = GPT2(GPT2Config(block_size=16, vocab_size=64, n_layer=12, n_head=2, n_embd=64), seed=3)
    tokens = mx.array(np.random.RandomState(0).randint(0, 64, (4, 16)))
    exact = model.hidden(tokens)
    model.update(precision.lowered(model.parameters(), "bfloat16"))
    hidden = model.hidden(tokens)
    assert hidden.dtype == mx.float32
    assert mx.linalg.norm(hidden - exact) < 2**-8 * mx.linalg.norm(exact)  # bfloat16 rounds by up to 2^-9


def test_the_loss_scale_is_halved_by_an_overflow_and_doubled_after_many_steps_without():
    scale, steps = precision.first_scale("float16"), 0
    scale, steps = precision.next_scale("float16", scale, 1999, taken=False)
    assert (scale, steps) == (2.0**7, 0)
    for _ in range(1999):
        scale, steps = precision.next_scale("float16", scale, steps, taken=True)
    assert (scale, steps) == (2.0**7, 1999)
    assert precision.next_scale("float16", scale, steps, taken=True) == (2.0**8, 0)
    assert precision.next_scale("float16", 1.0, 5, taken=False) == (1.0, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_has_float32s_range_is_not_scaled(dtype):
    assert precision.first_scale(dtype) == 1
    assert precision.next_scale(dtype, 1.0, 1999, taken=True) == (1.0, 1999)
    assert precision.next_scale(dtype, 1.0, 0, taken=False) == (1.0, 0)
