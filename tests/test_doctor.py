"""Each check of the doctor passes here, and fails where what it checks is broken."""

import importlib
import json
import math
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest

from gpt2_mlx import GPT2, GPT2Config, cli, device, elementwise, kv_cache, model
from gpt2_mlx.commands import doctor
from gpt2_mlx.config import PRESETS
from gpt2_mlx.doctor import checks, chips, examination, speed
from gpt2_mlx.doctor.finding import Finding, difference, within
from gpt2_mlx.generation import engine
from gpt2_mlx.training import loss, optim, trainer

ATTENTION, COMPILE, MATMUL = mx.fast.scaled_dot_product_attention, mx.compile, mx.matmul


def not_causal(q, k, v, *, scale, mask):
    return ATTENTION(q, k, v, scale=scale, mask=None)


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

    def wrong(tokens, targets, key, *more):
        first.append(key)
        return compiled(tokens, targets, first[0], *more)

    return wrong if function.__name__ == "gradients" else compiled


class ViewWithoutPositions(kv_cache.CacheView):
    def __init__(self, *args):
        super().__init__(*args)
        self.positions = mx.zeros_like(self.positions)


def draws_that_follow_the_crowd():
    """Random numbers that depend on how many were drawn before."""
    count = iter(range(10_000))
    return lambda seed, position: (next(count) * 0.618) % 1


def off(dtype_error: float):
    return lambda a, b: MATMUL(a, b) * (1 + dtype_error)


BUGS = {
    "products": lambda patch: patch.setattr(mx, "matmul", off(0.01)),
    "logits": lambda patch: patch.setattr(model, "gelu", nn.relu),
    "gradient": lambda patch: patch.setattr(
        checks, "cross_entropy", lambda h, w, t: loss.cross_entropy(h, mx.stop_gradient(w), t)
    ),
    "compiled_step": lambda patch: patch.setattr(mx, "compile", compile_that_scales_gradients),
    "compiled_dropout": lambda patch: patch.setattr(mx, "compile", compile_that_remembers_its_key),
    "attention": lambda patch: patch.setattr(mx.fast, "scaled_dot_product_attention", not_causal),
    "loss": lambda patch: patch.setattr(elementwise, "exp_of_negative", lambda x: mx.exp(x * 1.001)),
    "resume": lambda patch: patch.setattr(optim, "set_state", lambda optimizer, state: None),
    "cached": lambda patch: patch.setattr(kv_cache, "CacheView", ViewWithoutPositions),
    "batched": lambda patch: patch.setattr(engine, "uniform", draws_that_follow_the_crowd()),
}


@pytest.fixture(autouse=True)
def quick_and_without_memory(monkeypatch):
    monkeypatch.setattr(trainer, "FINAL_SAMPLES", 0)  # of a run that is resumed
    checks.product_error.cache_clear()
    yield
    checks.product_error.cache_clear()


@pytest.mark.parametrize("name", BUGS)
def test_a_check_passes_and_finds_its_bug(name, tmp_path, monkeypatch):
    check = getattr(checks, name)
    (tmp_path / "sound").mkdir()
    (tmp_path / "broken").mkdir()
    sound = check(tmp_path / "sound")
    assert sound.ok, sound
    json.dumps([sound.ok, sound.numbers])  # a report can hold it
    checks.product_error.cache_clear()
    BUGS[name](monkeypatch)
    broken = check(tmp_path / "broken")
    assert not broken.ok, broken


def test_each_check_has_its_bug():
    assert {check.__name__ for check in examination.CHECKS.values() if check.__module__ == checks.__name__} == set(BUGS)


def test_dropout_that_is_off_or_never_the_same_is_found(tmp_path, monkeypatch):
    for name, wrong, message in (
        ("off", lambda x, p, key: x, "nothing was dropped"),
        ("wild", lambda x, p, key: x * mx.random.bernoulli(0.5, x.shape), "the same key gave"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("gpt2_mlx.model.dropout", wrong)
            patch.setattr(mx, "compile", lambda function, **_: function)
            (tmp_path / name).mkdir()
            found = checks.compiled_dropout(tmp_path / name)
        assert not found.ok and message in found.text


def test_on_a_gpu_a_resume_may_differ_in_last_bits_only(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.device, "on_gpu", lambda: True)
    monkeypatch.setattr(device, "streams", lambda batch_size: [mx.default_stream(mx.cpu)])
    update, calls = optim.guarded_update, iter(range(100))

    def noisy(model, *arguments):
        model.wpe.weight = model.wpe.weight * (1 + 1e-7 * next(calls))
        return update(model, *arguments)

    monkeypatch.setattr(optim, "guarded_update", noisy)
    found = checks.resume(tmp_path)
    assert found.ok and "not bit for bit" in found.text
    monkeypatch.setattr(optim, "set_state", lambda optimizer, state: None)
    (tmp_path / "again").mkdir()
    assert not checks.resume(tmp_path / "again").ok


def test_nan_is_never_within():
    assert within(0.1, 0.1).ok and not within(0.2, 0.1).ok and not within(math.nan, 0.1).ok
    assert math.isnan(difference([1.0, math.nan], [1.0, 2.0]))
    assert difference([1.0, 3.0], [1.0, 4.0]) == 0.25


def test_speeds_are_told_with_the_share_of_a_known_chip(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0)
    monkeypatch.setitem(PRESETS, "tiny", GPT2Config(block_size=32, n_layer=1, n_head=1, n_embd=32))
    monkeypatch.setattr(speed.device, "chip", lambda: "Apple M2 Pro")
    found = speed.training(tmp_path)
    assert found.numbers["tokens_per_s"] > 0
    assert found.numbers["share_of_peak"] == pytest.approx(found.numbers["tflops"] / 6.8)
    assert "of the 6.8 TFLOP/s in float32 of the largest Apple M2 Pro" in found.text
    found = speed.decoding(tmp_path)
    assert found.numbers["share_of_peak"] == pytest.approx(found.numbers["gb_per_s"] / 200)
    assert found.numbers["tokens_per_s_of_16"] > found.numbers["tokens_per_s"] > 0
    assert speed.memory(tmp_path).numbers["peak_gb"] > 0.01


def test_unknown_chips_and_peaks_give_no_share():
    for chip in (None, "Apple M99", "Apple M5 Max"):
        words, share = chips.share_of_tflops(chip, 1.0)
        assert share is None and "not known for" in words
    assert chips.share_of_bandwidth("Apple M5 Max", 307)[1] == 0.5
    assert chips.share_of_tflops("Apple M1", 1.3) == ("50% of the 2.6 TFLOP/s in float32 of the largest Apple M1", 0.5)


def test_arithmetic_is_counted_by_hand():
    model = GPT2(GPT2Config(block_size=8, vocab_size=10, n_layer=1, n_head=1, n_embd=4))
    matrices = 4 * 12 + 4 * 4 + 4 * 16 + 16 * 4 + 10 * 4
    vectors = 12 + 4 + 16 + 4 + 3 * 2 * 4
    assert speed.flops_per_token(model) == 6 * (matrices + vectors) + 12 * 1 * 4 * 8


def raises(folder):
    (folder / "begun").touch()
    raise RuntimeError("no\nkernel")


def interrupted(folder):
    interrupted.folder = folder
    raise KeyboardInterrupt


def report(monkeypatch, capsys, found: dict, *flags: str):
    """Exit status, stdout and stderr of the command with other checks."""
    monkeypatch.setattr(examination, "CHECKS", found)
    monkeypatch.setattr(sys, "argv", ["doctor", "--device", "cpu", *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(doctor.main)
    return stop.value.code, *capsys.readouterr()


def test_a_check_that_raises_is_a_line_that_is_not_ok(monkeypatch, capsys):
    sound = {"fine": lambda folder: Finding(True, "1 of 1")}
    status, out, _ = report(monkeypatch, capsys, sound)
    assert status == 0 and "ok     fine: 1 of 1" in out and "all is ok" in out
    status, out, _ = report(monkeypatch, capsys, {"kernels": raises, **sound})
    assert status == 1
    assert "NOT OK kernels: RuntimeError: no kernel" in out and "ok     fine" in out
    assert "1 of 2 checks are NOT OK: kernels" in out


def test_the_report_is_json_that_says_what_machine_it_is(monkeypatch, capsys):
    found = {"kernels": raises, "nan": lambda folder: Finding(False, "nan", {"error": math.nan, "share": None})}
    status, out, err = report(monkeypatch, capsys, found, "--json")
    content = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert status == 1 and content["ok"] is False
    assert set(content["machine"]) == {"device", "system", "cpu_cores", "memory_gb", "blas", "compiler"}
    assert content["versions"]["mlx"] == importlib.metadata.version("mlx")
    assert [check["ok"] for check in content["checks"]] == [False, False]
    assert content["checks"][1]["error"] is None
    assert "NOT OK kernels" in err


def test_control_c_ends_quietly_and_leaves_no_folder(monkeypatch, capsys):
    status, out, err = report(monkeypatch, capsys, {"long": interrupted}, "--json")
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    assert not interrupted.folder.exists()
