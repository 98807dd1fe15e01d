"""What a step holds while it updates, in parts, and that the parts change no bit."""

import gc
import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from gpt2_mlx import device
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2
from gpt2_mlx.training import memory, optim, step
from gpt2_mlx.training.config import TrainConfig


def taken_by(width: int = 32, **fields) -> step.Step:
    """A step of a model that is nearly all weights, on windows of 8 tokens."""
    config = TrainConfig(preset="tiny", **fields).resolved(on_gpu=False)
    shape = GPT2Config(block_size=8, vocab_size=256, n_layer=8, n_head=2, n_embd=width)
    return step.Step(config, GPT2(shape, seed=1), device.streams(config.batch_size))


def take(one: step.Step, rate: float = 1e-3) -> tuple[mx.array, ...]:
    """One step on the same random tokens."""
    size = (one.config.batch_size, 8)
    tokens = mx.random.randint(0, 256, size, key=mx.random.key(3))
    outcome = one([(tokens, tokens)] * one.config.grad_accum_steps, rate)
    mx.eval(outcome, one.state)
    return outcome


def arrays(one: step.Step) -> dict[str, np.ndarray]:
    state = {"model": one.model.parameters(), "optimizer": one.optimizer.state}
    return {name: np.array(a) for name, a in tree_flatten(state) if "learning_rate" not in name}


def in_parts(monkeypatch, n: int) -> None:
    monkeypatch.setattr(memory, "part_size", lambda size: size / n)


@pytest.mark.cpu("it is measured where the arrays are")
@pytest.mark.parametrize(
    "fields, parts, ahead",  # `ahead`: bytes a parameter of activations, and of what MLX allocates ahead of its work
    [
        ({"batch_size": 1, "optimizer": "adamw"}, 1, 3),
        ({"batch_size": 2, "optimizer": "adamw", "grad_accum_steps": 2}, 8, 3),
        ({"batch_size": 2, "optimizer": "muon"}, 8, 4),
    ],
    ids=str,
)
def test_weights_gradients_and_moments_exist_once(monkeypatch, fields, parts, ahead):
    in_parts(monkeypatch, parts)
    gc.collect()
    elsewhere = mx.get_active_memory()
    one = taken_by(width=256, **fields)
    take(one)
    mx.reset_peak_memory()
    for _ in range(3):
        take(one)
    moments = sum(a.nbytes for _, a in tree_flatten(one.optimizer.state))
    once = 2 * 4 * one.model.n_params + moments  # 16 bytes a parameter, of Muon's 12
    assert mx.get_peak_memory() - elsewhere < once + ahead * one.model.n_params


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_in_parts_and_in_place_has_the_bits_of_one_of_the_whole(monkeypatch, optimizer):
    fields = {"optimizer": optimizer, "batch_size": 2, "grad_accum_steps": 2, "weight_decay": 0.3}
    in_parts(monkeypatch, 8)
    parts = taken_by(**fields)
    assert len(step._parts(parts.model.parameters())) > 4
    several = [take(parts) for _ in range(3)]
    in_parts(monkeypatch, 1)
    monkeypatch.setattr(optim, "_apart", lambda *arrays: arrays)  # moments and weights in one kernel
    whole = taken_by(**fields)
    assert len(step._parts(whole.model.parameters())) == 1
    assert [[a.item() for a in outcome] for outcome in several] == [[a.item() for a in take(whole)] for _ in range(3)]
    expected = arrays(whole)
    for name, array in arrays(parts).items():
        assert np.array_equal(array, expected[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("place", [("ln_f", "weight"), ("h", 0, "mlp", "c_fc", "weight"), ("wte", "weight")], ids=str)
def test_a_gradient_that_is_not_finite_in_one_part_leaves_all_as_they_were(monkeypatch, optimizer, place):
    in_parts(monkeypatch, 8)
    one = taken_by(optimizer=optimizer, batch_size=2)
    take(one)
    before, gradients = arrays(one), one.gradients

    def broken(*arguments):
        loss, count, tree = gradients(*arguments)
        last = tree
        for key in place[:-1]:
            last = last[key]
        last[place[-1]] = mx.where(mx.arange(last[place[-1]].shape[-1]) == 3, mx.nan, last[place[-1]])
        return loss, count, tree

    monkeypatch.setattr(one, "gradients", broken)
    _, norm, taken = take(one)
    assert not taken.item() and math.isnan(norm.item())
    after = arrays(one)
    assert all(np.array_equal(a, after[name]) for name, a in before.items())
    monkeypatch.setattr(one, "gradients", gradients)
    assert take(one)[2].item()
    assert not np.array_equal(arrays(one)["model.wte.weight"], before["model.wte.weight"])


def test_the_parts_are_the_arrays_from_the_last_to_the_first():
    tree = {"a": mx.zeros(40_000_000, mx.uint8), "b": [mx.zeros(30_000_000, mx.uint8), mx.zeros(2, mx.uint8)]}
    assert [[a.size for a in part] for part in step._parts(tree)] == [[2, 30_000_000], [40_000_000]]
