"""The doctor: what it allows, what it says, and its report. `test_doctor_checks.py` tests each check."""

import importlib
import json
import math
import sys

import mlx.core as mx
import numpy as np
import pytest
from planted import draws_that_follow_the_crowd, quick  # noqa: F401

from gpt2_mlx import GPT2, GPT2Config, cli, device
from gpt2_mlx.commands import doctor
from gpt2_mlx.doctor import chips, examination, reference, speed, steps, storage, texts, tolerance
from gpt2_mlx.doctor.finding import Finding, difference, within, worst
from gpt2_mlx.generation import decoder, engine
from gpt2_mlx.training import optim


def test_dropout_that_is_off_or_never_the_same_is_found(tmp_path, monkeypatch):
    for name, wrong, message in (
        ("off", lambda x, p, key: x, "nothing was dropped"),
        ("wild", lambda x, p, key: x * mx.random.bernoulli(0.5, x.shape), "the same key gave"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("gpt2_mlx.model.dropout", wrong)
            patch.setattr(mx, "compile", lambda function, **_: function)
            (tmp_path / name).mkdir()
            found = steps.dropout(tmp_path / name)
        assert not found.ok and message in found.text


def test_on_a_gpu_a_resume_may_differ_in_last_bits_only(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    monkeypatch.setattr(device, "streams", lambda batch_size: [mx.default_stream(mx.default_device())])
    update, calls = optim.guarded_update, iter(range(100))

    def noisy(model, *arguments):
        model.wpe.weight = model.wpe.weight * (1 + 1e-7 * next(calls))
        return update(model, *arguments)

    monkeypatch.setattr(optim, "guarded_update", noisy)
    found = steps.resume(tmp_path)
    assert found.ok and "not bit for bit" in found.text
    monkeypatch.setattr(optim, "set_state", lambda optimizer, state: None)
    (tmp_path / "again").mkdir()
    assert not steps.resume(tmp_path / "again").ok


def test_on_a_gpu_texts_may_part_where_tf32_rounds_a_draw_across_two_tokens(tmp_path, monkeypatch):
    head = decoder.head
    with monkeypatch.context() as patch:
        patch.setattr(tolerance, "product_error", lambda: 5e-4)
        patch.setattr(device, "on_gpu", lambda: True)
        patch.setattr(decoder, "head", lambda model, x: head(model, x) * (1.01 if len(x) > 1 else 1))
        found = texts.batched(tmp_path)
        assert found.ok and "the others part where a draw is beside a token's share" in found.text, found
        patch.setattr(engine, "uniform", draws_that_follow_the_crowd())
        assert not texts.batched(tmp_path).ok


def test_shares_by_hand():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    low, high = reference.shares(logits, 1.0, 0, 1.0, 0.0)
    assert low == pytest.approx([0, 0.1, 0.5, 0.7]) and high == pytest.approx([0.1, 0.5, 0.7, 1])
    low, high = reference.shares(logits, 1.0, 2, 1.0, 0.0)  # the likeliest first, two of them
    assert low.tolist() == [np.inf, 0, np.inf, pytest.approx(4 / 7)] and high[3] == pytest.approx(1)
    assert reference.shares(logits, 1.0, 0, 0.5, 0.0)[1].tolist() == pytest.approx([-np.inf, 4 / 7, -np.inf, 1])
    assert reference.shares(logits, 1.0, 0, 1.0, 0.6)[0].tolist() == pytest.approx([np.inf, 0, np.inf, 4 / 7])


def test_the_disk_is_checked_where_runs_are_written_and_nothing_stays_there(tmp_path):
    found = storage.disk(tmp_path / "not" / "made")
    assert found.ok and found.text == f"sync, lock and link in {tmp_path}" and not [*tmp_path.iterdir()]


def test_nan_is_never_within():
    assert within(0.1, 0.1).ok and not within(0.2, 0.1).ok and not within(math.nan, 0.1).ok
    assert math.isnan(difference([1.0, math.nan], [1.0, 2.0]))
    assert difference([1.0, 3.0], [1.0, 4.0]) == 0.25
    found = worst({"small": (0.1, 1.0), "nan": (math.nan, 1.0), "large": (9.0, 1.0)})
    assert not found.ok and found.text.endswith("in the worst of 3 cases, 2 of which are wrong: nan")
    assert worst({"a": (2.0, 10.0), "b": (1.0, 2.0)}).text.endswith(": b")


def test_speeds_are_told_with_the_share_of_a_known_chip(tmp_path, monkeypatch):
    monkeypatch.setattr(speed.inventory, "chip", lambda: "Apple M2 Pro")
    found = speed.training(tmp_path)
    assert found.numbers["tokens_per_s"] > 0
    assert found.numbers["share_of_peak"] == pytest.approx(found.numbers["tflops"] / 6.8)
    assert "of the 6.8 TFLOP/s in float32 of the largest Apple M2 Pro" in found.text
    found = speed.decoding(tmp_path)
    assert found.numbers["share_of_peak"] == pytest.approx(found.numbers["gb_per_s"] / 200)
    assert all(found.numbers[f"tokens_per_s{which}"] > 0 for which in ("", "_of_16", "_not_loaded"))


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
    monkeypatch.setattr(examination.storage, "disk", lambda out: Finding(True, f"{out} is sound"))
    with pytest.raises(SystemExit) as stop:
        cli.run(doctor.main)
    return stop.value.code, *capsys.readouterr()


def test_a_check_that_raises_is_a_line_that_is_not_ok(monkeypatch, capsys):
    sound = {"fine": lambda folder: Finding(True, "1 of 1")}
    status, out, _ = report(monkeypatch, capsys, sound)
    assert status == 0 and "ok     fine: 1 of 1" in out and "all is ok" in out
    assert "ok     disk of the runs: checkpoints is sound" in out
    status, out, _ = report(monkeypatch, capsys, {"kernels": raises, **sound})
    assert status == 1
    assert "NOT OK kernels: RuntimeError: no kernel" in out and "ok     fine" in out
    assert "1 of 3 checks are NOT OK: kernels" in out


def test_the_report_is_json_that_says_what_machine_it_is(monkeypatch, capsys):
    found = {"kernels": raises, "nan": lambda folder: Finding(False, "nan", {"error": math.nan, "share": None})}
    status, out, err = report(monkeypatch, capsys, found, "--json")
    content = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert status == 1 and content["ok"] is False
    assert set(content["machine"]) == {"device", "system", "cpu_cores", "memory_gb", "blas", "compiler"}
    assert content["limits"]["memory_limit_gb"] > 0 and content["limits"]["working_set_gb"] in (
        "none on a CPU",
        "not told",
    )
    assert content["versions"]["mlx"] == importlib.metadata.version("mlx")
    assert [check["ok"] for check in content["checks"]] == [False, False, True]
    assert content["checks"][1]["error"] is None
    assert "NOT OK kernels" in err


def test_control_c_ends_quietly_and_leaves_no_folder(monkeypatch, capsys):
    status, out, err = report(monkeypatch, capsys, {"long": interrupted}, "--json")
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    assert not interrupted.folder.exists()
