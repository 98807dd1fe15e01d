"""Each check of the doctor passes here, and fails where what it checks is broken."""

import fcntl
import importlib
import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest
from planted import (  # noqa: F401
    ARGPARTITION,
    CUMSUM,
    ENDS_BADLY,
    ORTHOGONAL,
    attention_that_is_wrong,
    attention_without_a_mask,
    compile_that_remembers_its_key,
    compile_that_scales_gradients,
    decoding_on_a_gpu,
    draws_of_another_thread,
    draws_of_removed_tokens,
    draws_that_follow_the_crowd,
    extend_in_order,
    extend_that_holds_what_was_there,
    extend_without_positions,
    launch_with,
    long,
    measured,
    not_causal,
    of_5_tokens,
    of_32,
    off,
    process_that_hangs,
    quantized_that_is_wrong_for_5_rows,
    quick,
    raises_enotsup,
    recompute_with_other_masks,
    relu_in_16_bits,
    update_that_forgets_the_scale,
    without_gradient_of_keys,
)

from gpt2_mlx import device, files, inventory, kv_cache, model
from gpt2_mlx.doctor import examination, machine, mathematics, storage, tolerance
from gpt2_mlx.generation import engine
from gpt2_mlx.serving import worker
from gpt2_mlx.training import loss, optim, plan


def versions(found: dict[str, str]):
    return lambda patch: patch.setattr(inventory, "versions", lambda *_: found)


def fused(attention):
    def plant(patch):
        patch.setattr(device, "is_scalar", lambda: False)  # Linux's CPU does not fuse
        patch.setattr(mx.fast, "scaled_dot_product_attention", attention)

    return plant


# A check, and for each of its bugs how to plant it and what the doctor says then.
BUGS = {
    "machine.versions": [
        (versions({"mlx": "2", "mlx-metal": "1"}), "must be equal"),
        (versions(dict.fromkeys(("mlx", *machine.BACKENDS), "2")), "two backends"),
    ],
    "mathematics.products": [(lambda patch: patch.setattr(mx, "matmul", off(0.01)), "relative error")],
    "mathematics.quantized": [
        (lambda patch: patch.setattr(mx, "quantized_matmul", quantized_that_is_wrong_for_5_rows), ": 5 rows,"),
    ],
    "mathematics.logits": [(lambda patch: patch.setattr(model, "gelu", nn.relu), "relative error")],
    "mathematics.gradient": [
        (
            lambda patch: patch.setattr(
                mathematics, "cross_entropy", lambda h, w, t: loss.cross_entropy(h, mx.stop_gradient(w), t)
            ),
            "relative error",
        )
    ],
    "mathematics.loss": [
        (
            lambda patch: patch.setattr(loss.elementwise, "exp_of_negative", lambda x: mx.exp(x * 1.001)),
            "relative error",
        ),
    ],
    "attention.fused": [
        (fused(not_causal), "tokens"),
        (fused(without_gradient_of_keys(lambda T: T == 1040)), ": 1,040 tokens"),
    ],
    "attention.cached": [
        (
            lambda patch: patch.setattr(kv_cache, "_attention", attention_that_is_wrong(long)),
            "12 of which are wrong: one token",
        ),
        (
            lambda patch: patch.setattr(kv_cache, "_attention", attention_that_is_wrong(of_5_tokens)),
            "6 of which are wrong: 5 tokens",
        ),
        (lambda patch: patch.setattr(kv_cache, "_attention", attention_that_is_wrong(of_32)), "heads of 32"),
        (lambda patch: patch.setattr(kv_cache, "_attention", attention_without_a_mask), "relative error"),
        (lambda patch: patch.setattr(kv_cache.KVCache, "extend", extend_in_order), "slots out of order"),
    ],
    "steps.compiled": [(lambda patch: patch.setattr(mx, "compile", compile_that_scales_gradients), ": wpe.weight")],
    "steps.dropout": [(lambda patch: patch.setattr(mx, "compile", compile_that_remembers_its_key), "dropped the same")],
    "steps.in_bfloat16": [(lambda patch: patch.setattr(model, "gelu", relu_in_16_bits), "of which are wrong: ")],
    "steps.in_float16": [
        (lambda patch: patch.setattr(model, "gelu", relu_in_16_bits), "of which are wrong: "),
        (
            lambda patch: patch.setattr(optim, "guarded_update", update_that_forgets_the_scale),
            "28 of which are wrong: ",
        ),
    ],
    "steps.recomputed": [(lambda patch: patch.setattr(nn.utils, "checkpoint", recompute_with_other_masks), "error")],
    "steps.short_windows": [
        (lambda patch: patch.setattr(mx, "tri", lambda T, dtype: mx.ones((T, T), dtype)), "28 of which are wrong")
    ],
    "steps.muon": [
        (
            lambda patch: patch.setattr(
                mlx.optimizers.Muon, "_zeropower_via_newtonschulz5", lambda self, X, steps: ORTHOGONAL(self, X, 4)
            ),
            ": h.",
        )
    ],
    "steps.resume": [
        (lambda patch: patch.setattr(optim, "set_state", lambda optimizer, state: None), "what was learnt")
    ],
    "draws.draws": [
        (draws_of_removed_tokens, "gave a token that was removed"),
        (lambda patch: patch.setattr(mx, "cumsum", lambda p, axis: CUMSUM(p, axis=axis) ** 1.1), "distance"),
        (
            lambda patch: patch.setattr(
                mx, "argpartition", lambda a, k, axis: mx.roll(ARGPARTITION(a, k, axis), 20, axis)
            ),
            "removed",
        ),
    ],
    "texts.cached": [
        (lambda patch: patch.setattr(kv_cache.KVCache, "extend", extend_without_positions), "relative error")
    ],
    "texts.batched": [
        (lambda patch: patch.setattr(engine, "uniform", draws_that_follow_the_crowd()), "the same as alone")
    ],
    "texts.threaded": [
        (lambda patch: patch.setattr(engine, "uniform", draws_of_another_thread), "a second thread drew")
    ],
    "texts.served": [
        (lambda patch: patch.setattr(worker, "launch", launch_with(ENDS_BADLY)), "it ended with status 5"),
        (lambda patch: process_that_hangs(patch), "it drew 0 tokens, not the 24"),
    ],
    "footprint.step": [
        (
            lambda patch: patch.setattr(plan, "measure", measured(1.3)),
            "1.30 times what is predicted, allowed 0.6 to 1.2",
        ),
        (lambda patch: patch.setattr(plan, "measure", measured(0.5)), "0.50 times what is predicted"),
    ],
    "footprint.cache": [
        (
            lambda patch: patch.setattr(kv_cache.KVCache, "extend", extend_that_holds_what_was_there),
            "it copies at least one of them",
        )
    ],
    "footprint.peak": [(lambda patch: patch.setattr(device, "memory", lambda: 1000), "which may take 0.0")],
    "speed.decoding": [(decoding_on_a_gpu, "weights lie in columns, which a GPU reads slowly, such as h.0.")],
    "storage.disk": [
        (lambda patch: patch.setattr(files, "sync", raises_enotsup), "sync fails: [Errno 95] Operation not supported"),
        (lambda patch: patch.setattr(fcntl, "flock", lambda *_: None), "a second process gets a folder's lock too"),
        (
            lambda patch: patch.setattr(files, "link", lambda path, target: path.write_text("one")),
            "a link to two leads to",
        ),
    ],
}


def check_named(name):
    module, function = name.split(".")
    return getattr(importlib.import_module(f"gpt2_mlx.doctor.{module}"), function)


@pytest.mark.parametrize("name", BUGS)
def test_a_check_passes_and_finds_its_bugs(name, tmp_path, monkeypatch):
    check = check_named(name)
    (tmp_path / "sound").mkdir()
    sound = check(tmp_path / "sound")
    assert sound.ok, sound
    json.dumps([sound.ok, sound.numbers])  # a report can hold it
    for i, (plant, message) in enumerate(BUGS[name]):
        tolerance.product_error.cache_clear()
        (tmp_path / str(i)).mkdir()
        with monkeypatch.context() as patch:
            plant(patch)
            broken = check(tmp_path / str(i))
        assert not broken.ok and message in broken.text, (message, broken)


def test_each_check_has_its_bug():
    functions = [*examination.CHECKS.values(), storage.disk]
    names = {f"{check.__module__.rpartition('.')[2]}.{check.__name__}" for check in functions}
    assert names - {"speed.training"} == set(BUGS)
