import dataclasses
import itertools

import mlx.core as mx
import numpy as np
import pytest
from events import check
from mlx.utils import tree_flatten

from gpt2_mlx import checkpoint, device, metrics, tokenizer
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.model import GPT2
from gpt2_mlx.training import precision, ranks, step
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.evaluation import Score, score_text
from gpt2_mlx.training.progress import Progress
from gpt2_mlx.training.report import Report
from gpt2_mlx.training.trainer import Trainer

VOCAB_SIZE = tokenizer.VOCAB_SIZE  # the samples of a run are text


def settings(**fields) -> TrainConfig:
    defaults = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 8,
        "batch_size": 4,
        "max_steps": 6,
        "warmup_steps": 2,
        "optimizer": "adamw",
        "sample_interval": 0,
    }
    return TrainConfig(**{**defaults, **fields}).resolved(on_gpu=False)


def trainer(tmp_path, name="run", **fields) -> Trainer:
    """A trainer of a tiny model on a tiny text."""
    config = settings(**fields)
    shape = dataclasses.replace(config.model_config(), vocab_size=VOCAB_SIZE)
    take_step = step.build(config, GPT2(shape, config.seed))
    tokens = np.random.RandomState(0).zipf(1.5, 700).clip(max=96).astype(np.uint16)
    run = tmp_path / name
    run.mkdir(exist_ok=True)
    return Trainer(config, take_step, TokenDataset(tokens), run)


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: np.array(p) for name, p in tree_flatten(trainer.model.parameters())}


def batches(n: int, size: int, seed: int = 1) -> list[tuple[mx.array, mx.array]]:
    random = np.random.RandomState(seed)
    return [tuple(mx.array(random.randint(0, 97, (size, 8))) for _ in range(2)) for _ in range(n)]


def test_micro_batches_equal_one_big_batch_weighted_by_tokens(tmp_path):
    micro = batches(3, 2)
    micro[1] = (micro[1][0], mx.where(mx.arange(8) < 3, micro[1][1], -1))  # fewer tokens count here
    big = tuple(mx.concatenate(parts) for parts in zip(*micro))
    together = trainer(tmp_path, batch_size=6)
    apart = trainer(tmp_path, batch_size=2, grad_accum_steps=3)
    loss, norm, _ = together.step([big], 1e-2)
    other_loss, other_norm, _ = apart.step(micro, 1e-2)
    assert loss.item() == pytest.approx(other_loss.item(), rel=1e-5)
    assert norm.item() == pytest.approx(other_norm.item(), rel=1e-4)
    assert all(np.allclose(p, weights(apart)[name], atol=1e-5) for name, p in weights(together).items())


@pytest.mark.cpu("a GPU takes a batch whole")
@pytest.mark.parametrize("cores", [1, 2, 4])
def test_the_split_over_cores_changes_nothing(tmp_path, monkeypatch, cores):
    (batch,) = batches(1, 4)
    monkeypatch.setattr(device, "cpu_count", lambda: cores)
    split = trainer(tmp_path)
    monkeypatch.setattr(device, "cpu_count", lambda: 1)
    whole = trainer(tmp_path)
    assert len(split.step.streams) == cores
    assert split.step([batch], 1e-2)[0].item() == pytest.approx(whole.step([batch], 1e-2)[0].item(), rel=1e-5)
    assert all(np.allclose(p, weights(whole)[name], atol=1e-5) for name, p in weights(split).items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_compiled_step_equals_the_plain_one(tmp_path, optimizer):
    compiled = trainer(tmp_path, dropout=0.2, optimizer=optimizer)
    plain = trainer(tmp_path, dropout=0.2, optimizer=optimizer, compile=False)
    for number, batch in enumerate(batches(3, 4)):
        got, want = compiled.step([batch], 1e-2, number), plain.step([batch], 1e-2, number)
        assert got[0].item() == pytest.approx(want[0].item(), rel=1e-4)
    assert all(np.allclose(p, weights(plain)[name], atol=2e-3) for name, p in weights(compiled).items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_batch_is_learnt_by_heart(tmp_path, optimizer):
    pupil = trainer(tmp_path, optimizer=optimizer, weight_decay=0.0)
    (batch,) = batches(1, 4)
    losses = [pupil.step([batch], 1e-2)[0].item() for _ in range(150)]
    assert losses[0] == pytest.approx(np.log(VOCAB_SIZE), abs=0.1)
    assert losses[-1] < 0.05


def test_dropout_follows_from_seed_and_step(tmp_path):
    (batch,) = batches(1, 4)

    def loss(number):
        return trainer(tmp_path, dropout=0.5).step([batch], 0.0, number)[0].item()

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)
    assert loss(3) != trainer(tmp_path).step([batch], 0.0)[0].item()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_master_weights_stay_float32_under_fewer_bits(tmp_path, dtype):
    half, full = trainer(tmp_path, dtype=dtype), trainer(tmp_path)
    (batch,) = batches(1, 4)
    scale = precision.first_scale(dtype)
    (got, norm, _), (want, full_norm, _) = half.step([batch], 1e-2, loss_scale=scale), full.step([batch], 1e-2)
    assert got.item() != want.item()
    assert got.item() == pytest.approx(want.item(), rel=1e-2)
    assert norm.item() == pytest.approx(full_norm.item(), rel=1e-2)  # float16's loss scale is gone
    assert all(p.dtype == np.float32 for p in weights(half).values())


def curve(tmp_path, **fields) -> np.ndarray:
    """The losses of 60 steps of reading the text."""
    one = trainer(tmp_path, str(fields), max_steps=60, learning_rate=1e-2, log_interval=1, eval_interval=60, **fields)
    one.fit()
    return np.array([e["loss"] for e in metrics.read(one.run / "metrics.jsonl") if e["event"] == "train"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_with_fewer_bits_it_learns_alike(tmp_path, dtype):
    full, half, other = curve(tmp_path), curve(tmp_path, dtype=dtype), curve(tmp_path, seed=2)
    assert full[:5].mean() - full[-5:].mean() > 3  # it has learnt something
    assert np.abs(half - full).max() < 0.05 < np.abs(other - full).mean()  # far less than another seed changes


def test_updates_below_bfloat16s_resolution_are_not_lost(tmp_path):
    one = trainer(tmp_path, dtype="bfloat16")
    for batch in batches(4, 4):
        one.step([batch], 1e-4)
    scales = weights(one)["ln_f.weight"]  # they begin at 1, where bfloat16's next number is 1.0078
    assert (scales != 1).all()
    assert np.abs(scales - 1).max() < 2**-9  # in bfloat16 each of the steps would have been rounded away


def test_float16_halves_its_loss_scale_until_nothing_overflows_and_doubles_it_later(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**40)
    monkeypatch.setattr(precision, "GROWTH_STEPS", 12)
    one = trainer(tmp_path, dtype="float16", max_steps=50, log_interval=1)
    before = weights(one)
    one.fit()
    checkpoint.load_weights(one.run / "latest", one.model)  # for it ends with the best ones
    skips = [e for e in metrics.read(one.run / "metrics.jsonl") if e["event"] == "skip"]
    assert [e["loss_scale"] for e in skips][:3] == [2.0**39, 2.0**38, 2.0**37]
    assert 5 < len(skips) < 40 and one.progress.skipped == len(skips)
    assert any((p != before[name]).any() for name, p in weights(one).items())


def test_evaluation_is_the_mean_over_all_tokens_of_the_split(tmp_path):
    one = trainer(tmp_path, dropout=0.5)
    tokens = mx.array(one.dataset.split("val").astype(np.int32))
    total = 0.0
    for start in range(0, len(tokens) - 1, 8):
        inputs, targets = tokens[start : start + 8][: len(tokens) - 1 - start], tokens[start + 1 : start + 9]
        logits = one.model(inputs[None])[0]
        total += (mx.logsumexp(logits, axis=-1) - logits[mx.arange(len(targets)), targets]).sum().item()
    assert one.evaluate("val").loss == pytest.approx(total / (len(tokens) - 1), rel=1e-5)
    assert one.evaluate("val") == one.evaluate("val")


def test_evaluation_of_a_large_text_is_over_its_first_tokens(tmp_path):
    one = trainer(tmp_path, eval_tokens=20)
    val = one.dataset.split("val")
    assert len(val) > 21
    alone = trainer(tmp_path)
    alone.dataset = TokenDataset(np.concatenate([np.zeros(8 * 21, np.uint16), val[:21], np.zeros(21, np.uint16)]))
    assert alone.dataset.split("val").tolist() == val[:21].tolist()
    assert one.evaluate("val") == alone.evaluate("val") != trainer(tmp_path, eval_tokens=0).evaluate("val")


@pytest.mark.parametrize(("eval_tokens", "end"), [(0, None), (20, 21)])
def test_a_runs_losses_in_bits_per_byte_are_those_of_evaluate(tmp_path, capsys, eval_tokens, end):
    one = trainer(tmp_path, max_steps=2, eval_interval=2, eval_tokens=eval_tokens)
    one.dataset.tokens[:] = np.where(np.arange(700) % 9 == 4, one.encoding.eot_token, one.dataset.tokens)
    one.fit()  # to step 2, the best one, whose weights it still has
    lines = capsys.readouterr().out
    for event, split in (("eval", "val"), ("test", "test")):
        read = one.dataset.split(split)[:end]
        (told,) = (e for e in metrics.read(one.run / "metrics.jsonl") if e["event"] == event)
        n_bytes = len(one.encoding.decode_bytes([id for id in read[1:] if id != one.encoding.eot_token]))
        nats = told.get("loss", told.get("val_loss")) * (len(read) - 1)
        assert told["bits_per_byte"] == pytest.approx(nats / n_bytes * np.log2(np.e))
        assert told["bits_per_byte"] == pytest.approx(score_text(one.model, one.encoding, read).bits_per_byte, rel=1e-6)
        assert f", {told['bits_per_byte']:.4f} bits per byte (" in lines


def test_the_run_folder(tmp_path):
    one = trainer(tmp_path, max_steps=6, eval_interval=2, save_interval=3, log_interval=1, keep=1, sample_interval=0)
    assert one.fit() == "max_steps"
    events = metrics.read(one.run / "metrics.jsonl")
    by_name = {name: [e["step"] for e in events if e["event"] == name] for name in ("train", "eval", "save", "test")}
    assert by_name["train"] == [1, 2, 3, 4, 5, 6]
    assert by_name["eval"] == [2, 4, 6]
    assert {3, 6} <= set(by_name["save"])
    assert by_name["test"] == [one.progress.best_step]
    assert events[-1]["event"] == "end" and events[-1]["reason"] == "max_steps"
    assert (one.run / "latest").resolve().name == "step-00000006"
    kept = {path.name for path in one.run.glob("step-*")}
    assert kept == {"step-00000006", f"step-{one.progress.best_step:08d}"}
    samples = [e for e in events if e["event"] == "sample"]
    assert len(samples) == 5
    assert all(e["text"].startswith("The course of true love never did run smooth.") for e in samples)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("more", [{}, {"dtype": "bfloat16", "grad_checkpoint": True}, {"dtype": "float16"}], ids=str)
def test_stopped_and_resumed_equals_never_stopped(tmp_path, monkeypatch, optimizer, more):
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)  # one of the seven steps is the third since step 4
    fields = {"optimizer": optimizer, "dropout": 0.1, "max_steps": 7, "eval_interval": 3, "grad_accum_steps": 2} | more
    straight = trainer(tmp_path, "straight", **fields)
    straight.fit()
    stopped = trainer(tmp_path, "stopped", **fields)
    monkeypatch.setattr(stopped.step, "gradients", counted(stopped.step.gradients, 8, lambda: stop(stopped)))
    assert stopped.fit() == "asked to"
    resumed = trainer(tmp_path, "stopped", **fields)
    resumed.restore((resumed.run / "latest").resolve())
    assert resumed.progress.step == 4
    resumed.fit()
    final = "step-00000007"
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (resumed.run / final / file).read_bytes() == (straight.run / final / file).read_bytes()
    assert resumed.progress.best_loss == straight.progress.best_loss
    assert resumed.progress.loss_scale == straight.progress.loss_scale


def counted(function, n: int, act):
    """The function, which acts at its n-th call."""
    calls = itertools.count(1)
    return lambda *arguments: (next(calls) == n and act(), function(*arguments))[1]


def stop(trainer: Trainer) -> None:
    trainer.stop_reason = "asked to"


def score(loss: float) -> Score:
    return Score(loss, tokens=1, bytes=4)


def test_patience_ends_the_run_and_keeps_the_best(tmp_path):
    one = trainer(tmp_path, max_steps=50, eval_interval=1, patience=2, learning_rate=1e-9)
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    one.evaluate, evaluate = lambda split: score(next(losses)) if split == "val" else evaluate(split), one.evaluate
    assert one.fit() == "patience"
    assert one.progress.step == 4
    assert (one.run / "best").resolve().name == "step-00000002"
    assert (one.run / "latest").resolve().name == "step-00000004"


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    one = trainer(tmp_path, max_steps=2, eval_interval=1)
    losses = iter([np.nan, 2.0])
    one.evaluate = lambda split: score(next(losses) if split == "val" else np.nan)
    one.fit()
    assert one.progress.best_step == 2
    assert [e["loss"] for e in metrics.read(one.run / "metrics.jsonl") if e["event"] == "test"] == [None]


def test_a_step_that_is_not_finite_is_skipped_counted_and_told(tmp_path, capsys):
    one = trainer(tmp_path, max_steps=3, log_interval=1)
    one.model.ln_f.weight = one.model.ln_f.weight * 1e38  # the gradients overflow
    before = weights(one)
    one.evaluate = lambda split: score(1.0)
    one.fit()
    events = metrics.read(one.run / "metrics.jsonl")
    assert [e["step"] for e in events if e["event"] == "skip"] == [1, 2, 3]
    assert "skip" in check(one.run / "metrics.jsonl")
    assert one.progress.skipped == 3
    assert "step 2: skipped, its gradients are not finite" in capsys.readouterr().out
    assert all(np.array_equal(p, weights(one)[name]) for name, p in before.items())


def test_processes_meet_between_two_pieces_of_the_gpus_work(tmp_path, monkeypatch):
    """A GPU's work that waits for a network is ended by macOS: the sums are there before, and the means after."""
    (batch,) = batches(1, 4)
    expected = trainer(tmp_path, "alone")
    want = expected.step([batch], 1e-2)[0].item()
    several, done = trainer(tmp_path, "several"), []

    def average(sums):
        assert mx.default_device() == mx.cpu
        assert all(np.isfinite(np.array(a)).all() for _, a in tree_flatten(sums))  # mx.compile would have no values
        done.append("meet")
        return sums

    def told(name, function):
        return lambda *args: (done.append(name), function(*args))[1]

    monkeypatch.setattr(step, "_evaluate", told("wait", step._evaluate))
    monkeypatch.setattr(several.step, "update", told("update", several.step.update))
    monkeypatch.setattr(ranks.nn, "average_gradients", average)
    monkeypatch.setattr(ranks, "size", lambda: 2)
    assert several.step([batch], 1e-2)[0].item() == want
    assert done[:4] == ["wait", "meet", "wait", "update"]
    monkeypatch.undo()
    assert all((p == weights(expected)[name]).all() for name, p in weights(several).items())


def test_a_step_without_a_target_that_counts_has_no_loss_and_no_gradient(tmp_path):
    one = trainer(tmp_path, batch_size=2)
    tokens, targets = batches(1, 2)[0]
    loss, norm, taken = one.step([(tokens, mx.full(targets.shape, -1))], rate=1e-2)
    assert np.isnan(loss.item()) and norm.item() == 0 and taken.item()
    assert all(np.isfinite(array).all() for array in weights(one).values())


def test_the_told_loss_is_the_mean_over_the_steps_with_a_target_that_counts(tmp_path):
    log = tmp_path / "metrics.jsonl"
    report, progress = Report(tmp_path, 0, settings(max_steps=4, log_interval=3)), Progress()
    for loss in (4.0, np.nan, 5.0, np.nan):
        progress.count_step(True, "float32")
        report.step(progress, loss, lr=1.0, grad_norm=0.0, taken=True, seconds=1.0)
    report.close()
    assert [e["loss"] for e in metrics.read(log)] == [4.0, 5.0, None]  # of step 1, of 2 and 3, of 4
