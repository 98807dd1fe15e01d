"""Bugs to plant, each of the kind that a check of the doctor looks for, and the fixture that makes its checks quick."""

import dataclasses
import errno
import subprocess
import sys
import threading
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest

from gpt2_mlx import GPT2Config, checkpoint, device, kv_cache, model
from gpt2_mlx.config import PRESETS
from gpt2_mlx.doctor import attention, speed, texts, tolerance
from gpt2_mlx.generation import sampling
from gpt2_mlx.serving import messages, worker
from gpt2_mlx.serving.served_adapters import NO_ADAPTERS
from gpt2_mlx.training import memory, optim, plan, trainer

ATTENTION, COMPILE, MATMUL = mx.fast.scaled_dot_product_attention, mx.compile, mx.matmul
QUANTIZED, CUMSUM, ARGPARTITION, CACHED = mx.quantized_matmul, mx.cumsum, mx.argpartition, kv_cache._attention
RECOMPUTE, GELU, EXTEND, LOAD = nn.utils.checkpoint, model.gelu, kv_cache.KVCache.extend, checkpoint.load
UPDATE = optim.guarded_update
ORTHOGONAL = mlx.optimizers.Muon._zeropower_via_newtonschulz5


def not_causal(q, k, v, *, scale, mask):
    return ATTENTION(q, k, v, scale=scale, mask=None)


def without_gradient_of_keys(applies):
    """Attention whose backward pass is wrong for some numbers of tokens."""

    def wrong(q, k, v, **more):
        return ATTENTION(q, mx.stop_gradient(k) if applies(q.shape[2]) else k, v, **more)

    return wrong


def compile_that_scales_gradients(function, **kwargs):
    """As mx.compile, but for a trainer's gradients."""
    compiled = COMPILE(function, **kwargs)

    def wrong(*args):
        loss, count, gradients = compiled(*args)
        gradients["wpe"]["weight"] = gradients["wpe"]["weight"] * 1.01
        return loss, count, gradients

    return wrong if function.__name__ == "gradients" else compiled


def compile_that_remembers_its_key(function, **kwargs):
    compiled, first = COMPILE(function, **kwargs), []

    def wrong(key, *more):
        first.append(key)
        return compiled(first[0], *more)

    return wrong if function.__name__ == "gradients" else compiled


def extend_without_positions(self, *arguments, **more):
    view = EXTEND(self, *arguments, **more)
    return dataclasses.replace(view, positions=mx.zeros_like(view.positions))


def extend_in_order(self, *arguments, **more):
    """A view whose keys are read in the order of the slots, whatever the order of the rows."""
    view = EXTEND(self, *arguments, **more)
    return view if isinstance(view.slots, slice) else dataclasses.replace(view, slots=mx.sort(view.slots))


def long(q, keys):
    return q.shape[2] == 1 and keys.shape[2] > 1024


def of_5_tokens(q, keys):
    return q.shape[2] == 5


def of_32(q, keys):
    return q.shape[3] == 32


def attention_that_is_wrong(applies):
    """Attention to a cache that leaves out the first key in some cases."""

    def wrong(q, keys, values, mask, scale):
        if applies(q, keys):
            mask = mask & (mx.arange(keys.shape[2]) >= 1)
        return CACHED(q, keys, values, mask, scale)

    return wrong


def attention_without_a_mask(q, keys, values, mask, scale):
    return CACHED(q, keys, values, mx.ones_like(mask), scale)


def process_that_hangs(patch):
    patch.setattr(texts, "LONGEST", 0.2)
    patch.setattr(worker, "launch", launch_with(HANGS))


def draws_that_follow_the_crowd():
    """Random numbers that depend on how many were drawn before."""
    count = iter(range(10_000))
    return lambda seed, position: (next(count) * 0.618) % 1


def draws_of_another_thread(seed, position):
    return 0.25 if threading.current_thread() is threading.main_thread() else 0.75


def off(dtype_error: float):
    return lambda a, b: MATMUL(a, b) * (1 + dtype_error)


def quantized_that_is_wrong_for_5_rows(x, *weights, **more):
    return QUANTIZED(x, *weights, **more) * (1.05 if len(x) == 5 else 1)


def recompute_with_other_masks(block, forward):
    return RECOMPUTE(block, partial(forward.func, key=mx.random.key(9), cache=None))


def relu_in_16_bits(x):
    return GELU(x) if x.dtype == mx.float32 else nn.relu(x)


def update_that_forgets_the_scale(model, optimizer, sums, count, *more):
    return UPDATE(model, optimizer, sums, mx.minimum(count, 64), *more)


def scan_that_falls_back(p, axis):
    """A sum of parts, as on a GPU: it may grow a little where nothing is added."""
    return CUMSUM(p, axis=axis) * (1 + 1e-7 * (mx.arange(p.shape[-1]) % 3))


def pick_that_trusts_the_scan(p, draws):
    cumulated = mx.cumsum(p, axis=-1)
    return mx.argmax(cumulated > mx.array(draws)[:, None] * cumulated[:, -1:], axis=-1, keepdims=True)


def draws_of_removed_tokens(patch):
    patch.setattr(mx, "cumsum", scan_that_falls_back)
    patch.setattr(sampling, "_pick", pick_that_trusts_the_scan)


def extend_that_holds_what_was_there(self, *arguments, **more):
    self.held = [array.flatten() for array in self.state()]
    return EXTEND(self, *arguments, **more)


def load_in_columns(folder):
    loaded = LOAD(folder)
    loaded.h[0].mlp.c_fc.weight = mx.contiguous(loaded.h[0].mlp.c_fc.weight.T).T
    mx.eval(loaded.parameters())
    return loaded


def decoding_on_a_gpu(patch):
    patch.setattr(device, "on_gpu", lambda: True)
    patch.setattr(speed.checkpoint, "load", load_in_columns)


def launch_with(code):
    """A process of the engine that runs other code."""

    def launch(config, folder):
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(messages.pack((config, folder, NO_ADAPTERS)))
        process.stdin.flush()
        return process

    return launch


HANGS = "import sys; sys.stdin.buffer.read()"
ENDS_BADLY = """
import os
end, os._exit = os._exit, lambda status: end(5)
from gpt2_mlx.serving import worker
worker.main()
"""


def raises_enotsup(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")


def measured(share):
    """A measurement of a step that takes a share of what is predicted."""
    return lambda config: (1.0, mx.get_active_memory() + share * memory.peak(config))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small models where a check takes the size of a preset; without samples, and without memory of other tests."""
    monkeypatch.setattr(trainer, "FINAL_SAMPLES", 0)  # of a run that is resumed
    monkeypatch.setattr(speed, "SECONDS", 0)
    monkeypatch.setitem(PRESETS, "tiny", GPT2Config(block_size=32, n_layer=1, n_head=1, n_embd=32))
    monkeypatch.setattr(speed, "preset", lambda: "tiny")
    monkeypatch.setattr(plan, "measure", measured(1.0))
    monkeypatch.setattr(attention, "FUSED", [(1040, 64, "float32"), (16, 32, "float32"), (16, 64, "bfloat16")])
    tolerance.product_error.cache_clear()
    yield
    tolerance.product_error.cache_clear()
