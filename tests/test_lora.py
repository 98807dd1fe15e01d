"""An adapter beside a frozen base: training, checkpoints, loading."""

import gc
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from mlx.utils import tree_flatten, tree_map
from trained import train

from gpt2_mlx import GPT2, GPT2Config, adapter, checkpoint, cli, pretrained, tokenizer
from gpt2_mlx.commands import convert
from gpt2_mlx.lora import LoRALinear
from gpt2_mlx.serving import engines
from gpt2_mlx.training import adapting, memory, plan, step
from gpt2_mlx.training import run as opening
from gpt2_mlx.training.config import TrainConfig

SHAPE = GPT2Config(block_size=16, vocab_size=257, n_layer=3, n_head=2, n_embd=32)
BYTES = tokenizer.of_merges([])
TOKENS = mx.random.randint(0, 257, (2, 12), key=mx.random.key(5))


@pytest.fixture
def base(tmp_path) -> Path:
    checkpoint.save(tmp_path / "base", GPT2(SHAPE, seed=3), vocabulary=BYTES)
    return tmp_path / "base"


def adapted(base: Path, **fields) -> tuple[GPT2, TrainConfig]:
    config = TrainConfig(**{"init_from": str(base), "lora_rank": 4, "vocab": "bytes", "batch_size": 2} | fields)
    config = config.resolved(on_gpu=False, init=checkpoint.read_config(base))
    model = checkpoint.load(base)
    adapting.lower_base(model, config)
    adapting.adapt(model, config, adapting.base_of(config, base, None))
    return model, config


def moved(model: GPT2) -> GPT2:
    """The model with an adapter that changes it."""
    model.update(tree_map(lambda p: p + mx.random.normal(p.shape, key=mx.random.key(1)), model.trainable_parameters()))
    return model


def frozen(model: GPT2) -> dict[str, np.ndarray]:
    return {name: np.array(a.view(mx.uint8)) for name, a in tree_flatten(model.parameters()) if "lora_" not in name}


def test_at_first_it_changes_nothing_and_only_its_matrices_learn(base):
    model, _ = adapted(base, lora_layers=2, lora_targets=("attn.c_attn", "mlp.c_proj"))
    assert mx.array_equal(model(TOKENS), checkpoint.load(base)(TOKENS))
    names = {
        f"h.{i}.{target}.lora_{which}" for i in (1, 2) for target in ("attn.c_attn", "mlp.c_proj") for which in "ab"
    }
    assert {name for name, _ in tree_flatten(model.trainable_parameters())} == names


@pytest.mark.parametrize(
    "fields", [{}, {"dtype": "bfloat16"}, {"quantize": 8}, {"quantize": 4, "dtype": "bfloat16"}], ids=str
)
def test_it_learns_and_its_base_keeps_every_bit(base, fields):
    model, config = adapted(base, **fields, lora_dropout=0.1)
    before, take = frozen(model), step.build(config, model)
    losses = [take([(TOKENS, TOKENS)], 0.01, i)[0].item() for i in range(20)]
    assert losses[-1] < losses[0] - 0.05
    after = frozen(model)
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert take.optimizer.state and sum(a.size for _, a in tree_flatten(take.optimizer.state)) < 2.1 * model.n_trained


def test_a_recomputed_forward_pass_drops_the_same_inputs(base):
    model = moved(adapted(base, lora_dropout=0.5)[0])

    def gradients(number: int, **more) -> dict[str, np.ndarray]:
        own = adapted(base, lora_dropout=more.pop("p", 0.5), **more)
        own[0].update(model.trainable_parameters())
        take = step.build(own[1], own[0])
        return dict(tree_flatten(take.gradients(mx.random.key(number), mx.array(1.0), TOKENS, TOKENS)[2]))

    kept, other, undropped = gradients(0), gradients(1), gradients(0, p=0.0)
    for remade in (gradients(0, grad_checkpoint=True), gradients(0, compile=False)):
        assert all(mx.allclose(remade[name], kept[name], rtol=1e-4, atol=1e-4) for name in kept)
    name = "h.1.mlp.c_fc.lora_b"
    assert not mx.allclose(kept[name], other[name], rtol=0.1) and not mx.allclose(kept[name], undropped[name], rtol=0.1)


@pytest.mark.parametrize("fields", [{}, {"quantize": 4}, {"block_size": 12}], ids=str)
def test_what_is_loaded_gives_the_logits_of_what_was_trained(base, fields, tmp_path):
    model = moved(adapted(base, **fields)[0])
    checkpoint.save(tmp_path / "adapter", model, vocabulary=BYTES)
    loaded = pretrained.load(pretrained.find(tmp_path / "adapter"))
    assert not any(isinstance(module, LoRALinear) for module in loaded.modules())
    assert mx.allclose(loaded(TOKENS), model(TOKENS), atol=1e-4)
    assert not mx.allclose(loaded(TOKENS), checkpoint.load(base)(TOKENS), atol=0.1)
    served = engines.loading(tmp_path / "adapter", "float32", None, lambda model, folder: model)
    assert mx.array_equal(checkpoint.whole(served)(TOKENS), loaded(TOKENS))


def test_convert_fuses_or_writes_the_adapter_alone(base, tmp_path, monkeypatch, capsys):
    checkpoint.save(tmp_path / "adapter", moved(adapted(base, quantize=8)[0]), vocabulary=BYTES)

    def run(*words: object) -> None:
        monkeypatch.setattr("sys.argv", ["convert", *map(str, words)])
        convert.main()

    with pytest.raises(ValueError, match="is an adapter: give --fuse"):
        run(tmp_path / "adapter", tmp_path / "whole")
    with pytest.raises(ValueError, match="--fuse is given, but .*base is no adapter"):
        run(base, tmp_path / "whole", "--fuse")
    for flag in ("--quantize=4", "--dtype=float16"):
        with pytest.raises(ValueError, match=f"{flag.replace('=', ' is ')}, but an adapter is written in float32"):
            run(tmp_path / "adapter", tmp_path / "own.gguf", flag)
    run(tmp_path / "adapter", tmp_path / "own.gguf")
    assert len(GGUFReader(tmp_path / "own.gguf").tensors) == 3 * 4 * 2
    assert "it learned beside a base in 8 bits, which only --fuse gives exactly" in capsys.readouterr().out
    run(tmp_path / "adapter", tmp_path / "whole", "--fuse")
    want = dict(tree_flatten(pretrained.load(tmp_path / "adapter").parameters()))
    got = dict(tree_flatten(checkpoint.load(tmp_path / "whole").parameters()))
    assert got.keys() == want.keys() and all(mx.array_equal(got[name], want[name]) for name in want)


def test_another_base_is_refused(base, tmp_path):
    checkpoint.save(tmp_path / "adapter", adapted(base)[0], vocabulary=BYTES)
    checkpoint.save(base, GPT2(SHAPE, seed=4), vocabulary=BYTES)
    with pytest.raises(ValueError, match="but the weights there are not those that it was made for"):
        pretrained.load(tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(ValueError, match="is an adapter of .*base, which is not there"):
        pretrained.load(tmp_path / "adapter")


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"use_dora": True}, "use_dora is True; it must be False"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; it must be 'LORA'"),
        ({"r": None}, "r is None and lora_alpha is 8.0; they must be numbers"),
        ({"base_model_name_or_path": None}, "names no base"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(base, fields, told, tmp_path):
    checkpoint.save(tmp_path / "adapter", adapted(base)[0], vocabulary=BYTES)
    path = tmp_path / "adapter" / adapter.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=told):
        pretrained.load(tmp_path / "adapter")


def test_tensors_that_do_not_fit_are_named(base, tmp_path):
    checkpoint.save(tmp_path / "adapter", adapted(base)[0], vocabulary=BYTES)
    file = tmp_path / "adapter" / adapter.PEFT
    arrays = mx.load(str(file))
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    for arrays[name], told in (
        (mx.zeros((4, 31)), r"is \(31, 4\), not \(32, 4\)"),
        (mx.full((4, 32), mx.nan), "finite"),
    ):
        mx.save_safetensors(str(file), arrays)
        with pytest.raises(ValueError, match=f"h.0.attn.c_attn.lora_a .*{told}"):
            pretrained.load(tmp_path / "adapter")


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"lora_rank": 8}, "--lora-rank is 8, but there is no base: --init-from names it"),
        ({"init_from": "gpt2", "quantize": 4}, "--quantize is 4, but there is no adapter: --lora-rank gives its rank"),
        ({"init_from": "gpt2", "lora_alpha": 2.0}, "--lora-alpha is 2.0, but there is no adapter"),
        ({"init_from": "gpt2", "lora_targets": ["mlp.c_fc"]}, "--lora-targets is mlp.c_fc, but there is no adapter"),
        ({"init_from": "gpt2", "lora_rank": -1}, "--lora-rank is -1; it must be at least 0"),
        (
            {"init_from": "gpt2", "lora_rank": 8, "lora_dropout": 1.0},
            "--lora-dropout is 1.0; it must be at least 0 and",
        ),
        ({"init_from": "gpt2", "lora_rank": 8, "lora_alpha": 0.0}, "--lora-alpha is 0.0; it must be more than 0"),
        ({"init_from": "gpt2", "lora_rank": 8, "optimizer": "muon"}, "an adapter learns by adamw"),
    ],
)
def test_flags_that_make_no_sense(fields, told):
    with pytest.raises(ValueError, match=told):
        TrainConfig(**fields)


def test_more_blocks_than_there_are(base):
    with pytest.raises(ValueError, match="--lora-layers is 4, but .*base has 3 blocks"):
        adapted(base, lora_layers=4)


def test_targets_are_known_names(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--init-from", "gpt2", "--lora-rank", "8", "--lora-targets", "c_attn"])
    with pytest.raises(SystemExit) as stop:
        cli.parse(TrainConfig)
    assert stop.value.code == 2 and "c_attn" in capsys.readouterr().err


@pytest.mark.cpu("it is measured where the arrays are")
@pytest.mark.parametrize("fields", [{}, {"quantize": 4}, {"lora_layers": 2, "grad_checkpoint": True}], ids=str)
def test_the_predicted_peak_is_near_the_measured_one(fields):
    shape = GPT2Config(block_size=256, n_layer=4, n_head=4, n_embd=256)
    gc.collect()  # what other tests left behind would count
    config = TrainConfig(init_from="base", lora_rank=8, batch_size=2, **fields).resolved(on_gpu=False, init=shape)
    _, measured = plan.measure(config)
    assert memory.peak(config) == pytest.approx(measured, rel=0.25)


@pytest.mark.cpu("it is measured where the arrays are")
@pytest.mark.parametrize("fields", [{"quantize": 4}, {"dtype": "bfloat16"}], ids=str)
def test_a_base_is_read_tensor_by_tensor(tmp_path, fields):
    shape = GPT2Config(block_size=16, vocab_size=257, n_layer=6, n_head=4, n_embd=256)
    checkpoint.save(tmp_path / "base", GPT2(shape), vocabulary=BYTES)
    stored = (tmp_path / "base" / "model.safetensors").stat().st_size
    config = TrainConfig(init_from=str(tmp_path / "base"), lora_rank=2, vocab="bytes", **fields).resolved(False, shape)
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = opening.initial(config, tmp_path / "base", None)
    held = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    one = 4 * 4 * 256 * 256  # bytes of a stored matrix of the MLP
    assert mx.get_peak_memory() - before < held + 3 * one < stored


@pytest.fixture
def run(text, tmp_path) -> Path:
    """A run of 40 steps that keeps all checkpoints, with its base beside it."""
    checkpoint.save(tmp_path / "base", GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=8), seed=3))
    flags = {"init_from": tmp_path / "base", "lora_rank": 2, "lora_dropout": 0.2, "learning_rate": 0.01}
    done = train(text, tmp_path / "run", **flags, keep=100)
    assert done.returncode == 0, done.stderr
    assert "frozen, its blocks in float32; 256 parameters of an adapter learn" in done.stdout
    return tmp_path / "run"


@pytest.mark.cpu("a GPU may sum in another order")
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped_and_refuses_another_base(run, text, tmp_path):
    last = run / "step-00000040"
    files = (*adapter.FILES, "optimizer.safetensors")
    want = {name: (last / name).read_bytes() for name in files}
    assert not (last / "model.safetensors").exists() and (last / adapter.PEFT).stat().st_size < 4000
    shutil.copytree(tmp_path / "base", tmp_path / "kept")
    for folder in checkpoint.all_of(run):
        if checkpoint.step(folder.name) > 24:
            shutil.rmtree(folder)
    checkpoint.save(tmp_path / "base", GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=8), seed=4))
    refused = train(text, run, "--resume")
    assert refused.returncode == 2 and "are not those that it was made for" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "kept").rename(tmp_path / "base")
    done = train(text, run, "--resume")
    assert done.returncode == 0, done.stderr
    assert {name: (last / name).read_bytes() for name in files} == want
