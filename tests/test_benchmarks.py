import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import adapters, common, contestants, mac, plan, tokenize, train_step
from benchmarks.weights import save_random
from gpt2_mlx import GPT2Config, device
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.recipes import OWN_VOCABULARY

ROOT = Path(__file__).parents[1]
TINY = {"preset": "tiny", "batch_size": 1, "block_size": 8, "optimizer": "adamw", "dtype": "float32"}
TINY |= {"device": "cpu", "steps": 1}


def test_contestants_take_turns():
    order = []
    values = iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])
    contestants = {name: lambda name=name: order.append(name) or next(values) for name in "ab"}
    measured = common.alternate(3, contestants)
    assert order == list("ababab")
    assert measured == {"a": [3.0, 1.0, 2.0], "b": [30.0, 10.0, 20.0]}
    assert common.medians(measured) == {"a": 2.0, "b": 20.0}


def test_a_result_is_a_line_that_tells_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results.jsonl")
    for ratio in (1, 2):
        common.append("some", ratio=ratio, **common.machine("numpy"))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["ratio"] for line in lines] == [1, 2]
    assert {"benchmark", "time", "device", "system"} <= set(lines[0])
    assert {"python", "mlx", "numpy"} == set(lines[0]["versions"])


def test_the_peers_have_the_shapes_of_the_presets():
    assert {f"{preset}, own vocabulary" for preset in OWN_VOCABULARY} <= contestants.SHAPES.keys()
    for name, shape in contestants.SHAPES.items():
        preset, _, own = name.partition(", ")
        config = TrainConfig(preset=preset, vocab="1024" if own else None).resolved(on_gpu=False)
        assert shape == (config.n_layer, config.n_head, config.n_embd), name


def test_a_table_is_aligned():
    assert common.table(["a", "seconds"], [["ours", "1"]]).splitlines() == [
        "| a    | seconds |",
        "| ---- | ------- |",
        "| ours | 1       |",
    ]


def test_tokenize_measures_us_beside_tiktoken():
    results = tokenize.measure(20_000, rounds=2)
    ours, *peers = results["median_s"]
    assert ours == "gpt2_mlx, to shards" and all(name.startswith("tiktoken, ") for name in peers)
    assert {len(seconds) for seconds in results["seconds"].values()} == {2}
    medians = results["median_s"]
    assert results["ratio"] == pytest.approx(medians[ours] / min(medians[name] for name in peers))


def test_plan_measures_a_configuration_beside_its_prediction():
    fields = {"preset": "tiny", "n_layer": 1, "n_embd": 32, "batch_size": 1, "block_size": 16, "device": "cpu"}
    result = plan.measure(fields)
    assert result["configuration"] == fields and result["seconds"] > 0
    assert 1 + result["off"] == pytest.approx(result["predicted_gb"] / result["measured_gb"])


def test_an_adapters_run_tells_what_it_took(text, tmp_path):
    save_random(GPT2Config(block_size=16, n_layer=2, n_head=1, n_embd=32), tmp_path / "base")
    settings = adapters.Settings(steps=2, data=str(text))
    result = adapters.train(settings, tmp_path / "base", tmp_path / "run", {"lora_rank": 4, "quantize": 4})
    assert result["trained"] == 2 * 4 * 32 * (4 + 2 + 5 + 5)
    assert result["seconds"] > 0 and result["peak_gb"] > result["arrays_gb"] > 0
    adapter = 4 * 4 * result["trained"]  # bytes: twice for other programs, and its two moments
    assert adapter < 1e6 * result["checkpoint_mb"] < (tmp_path / "base" / "model.safetensors").stat().st_size


def test_a_worker_answers_by_rounds_and_tells_its_memory():
    results = common.alternate_processes(2, {"a": ("ours:train", TINY), "b": ("ours:train", TINY)})
    for result in results.values():
        assert len(result["tokens_per_s"]) == 2 and min(result["tokens_per_s"]) > 0
        assert 0.01 < result["peak_gb"] < 4


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps, which tells which process is whose")
def test_a_short_soak_breaks_no_promise(tmp_path):
    command = [sys.executable, "-m", "benchmarks.soak", "--quick", "--picture", str(tmp_path / "memory.svg")]
    parts = ["--parts", "siege", "audits", "schemas"]
    done = subprocess.run([*command, *parts], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'equal': " in done.stdout and "'gpt2_running': 0.0" in done.stdout
    for told in ("'audits': ", "'valid': 20"):
        assert told in done.stdout
    assert (tmp_path / "memory.svg").read_text().count("<svg") == 1


def test_windows_cover_each_epoch_once():
    tokens, seen = np.arange(41), []
    batches = contestants.windows(tokens, batch_size=2, block_size=4)
    for _ in range(4):  # an epoch: 9 or 10 windows
        seen += [row for batch in [next(batches)] for row in batch.tolist()]
    assert all(row == list(range(row[0], row[0] + 5)) for row in seen)
    assert len({row[0] for row in seen}) == 8 and len({row[0] % 4 for row in seen}) == 1


def test_a_missing_peer_is_told_with_what_brings_it():
    with pytest.raises(ValueError, match=r"no_such_peer not found: `pip install -r requirements-bench\.txt`"):
        common.require("json", "no_such_peer")


def test_a_peer_that_does_not_run_is_left_out(capfd):
    results = common.alternate_processes(1, {"gpt2_mlx": ("ours:train", TINY), "peer": ("ours:no_such_function", {})})
    assert list(results) == ["gpt2_mlx"]
    assert "NOTE: peer is left out: ours:no_such_function ended early" in capfd.readouterr().err
    with pytest.raises(ValueError, match="ended early"):
        common.alternate_processes(1, {"gpt2_mlx": ("ours:no_such_function", {})})


def test_a_gpus_batch_is_that_of_training_as_far_as_all_contestants_fit(monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: 1 << 50)
    assert train_step.shape_of("gpt2", on_gpu=True) == (4, 1024)
    monkeypatch.setattr(device, "memory", lambda: 1)
    assert train_step.shape_of("gpt2", on_gpu=True) == (1, 1024)
    assert train_step.shape_of("gpt2", on_gpu=False) == train_step.SIZES["gpt2"]


def test_a_macs_table_has_the_machine_and_a_column_for_each_contestant(monkeypatch):
    monkeypatch.setattr(device, "total_memory", lambda: 16_000_000_000)
    facts = {"device": "Apple M1, GPU", "system": "macOS-15.1", "commit": "abc", "versions": {"mlx": "0.32.4"}}
    rows = [
        ("a step, tokens/s", {"gpt2_mlx": 12345.6, "plain MLX": 999.4, "PyTorch eager": 0.5}),
        ("requests that failed", {"mlx_lm": 3, "gpt2_mlx": 0}),
        ("one text, tokens/s", {"transformers": 26.25, "gpt2_mlx": 45.0}),
    ]
    assert mac.report(facts, rows).splitlines() == [
        "Apple M1, GPU; 16 GB; macOS-15.1; commit abc",
        "mlx 0.32.4",
        "",
        "|                      | gpt2_mlx | mlx-lm | PyTorch |",
        "| -------------------- | -------- | ------ | ------- |",
        "| a step, tokens/s     | 12,346   | 999    | 0.5     |",
        "| requests that failed | 0        | 3      |         |",
        "| one text, tokens/s   | 45       |        | 26.2    |",
    ]


def test_a_mac_is_measured_part_by_part(monkeypatch, tmp_path):
    asked = []

    def processes(rounds, contestants):
        asked.append((rounds, *contestants))
        numbers = {"tokens_per_s": [2.0], "first_s": [0.5], "peak_gb": 1.0, "same_ids": 1}
        return {name: dict(numbers, ids=[[0] * settings.get("n", 0)]) for name, (_, settings) in contestants.items()}

    monkeypatch.setattr(train_step, "alternate_processes", processes)
    monkeypatch.setattr(mac.decode, "alternate_processes", processes)
    rows = [*mac.steps("tiny", "float32", "cpu", 2), *mac.texts(tmp_path / "tiny", "float32", "cpu", 2)]
    assert [label for label, _ in rows] == [
        "a step of tiny, 16 x 128, float32, tokens/s",
        "the same with Muon, tokens/s",
        "its memory, GB",
        "one text of tiny, float32, tokens/s",
        "its memory, GB",
        "100 tokens to the next, s",
    ]
    assert asked[0] == (2, "gpt2_mlx", "gpt2_mlx, Muon", "plain MLX", "PyTorch eager")
    assert set().union(*(values for _, values in rows)) <= set(mac.COLUMNS)
