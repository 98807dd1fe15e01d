"""Adapters: gradients and logits beside peft's and mlx-lm's, whose folders are opened both ways."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from gpt2_mlx import GPT2, GPT2Config, checkpoint, pretrained, tokenizer
from gpt2_mlx.training import adapting, step
from gpt2_mlx.training.config import TrainConfig

from .conftest import logits, some_tokens, torch_logits
from .test_checkpoint import jittered

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
mlx_lm = pytest.importorskip("mlx_lm")

SHAPE = GPT2Config(block_size=24, vocab_size=257, n_layer=3, n_head=2, n_embd=32)
BYTES = tokenizer.of_merges([])
KINDS = {
    "all": {},
    "some": {"lora_layers": 2, "lora_targets": ("attn.c_proj", "mlp.c_fc"), "lora_alpha": 3.0},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    checkpoint.save(folder, jittered(SHAPE), vocabulary=BYTES)
    return folder


def adapted(base: Path, **fields) -> tuple[GPT2, TrainConfig]:
    """The base with an adapter that changes it much."""
    settings = TrainConfig(init_from=str(base), lora_rank=4, vocab="bytes", grad_clip=0.0, **fields)
    config = settings.resolved(on_gpu=False, init=SHAPE)
    model = checkpoint.load(base)
    adapting.lower_base(model, config)
    adapting.adapt(model, config, adapting.base_of(config, base, None))

    def moved(name: str, p: mx.array) -> mx.array:
        return p + 0.2 * mx.random.normal(p.shape, key=mx.random.key(len(name)))

    model.update(tree_map_with_path(moved, model.trainable_parameters()))
    return model, config


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_pefts(base, kind, tmp_path):
    ours, config = adapted(base, **KINDS[kind], batch_size=2)
    checkpoint.save(tmp_path / "adapter", ours, vocabulary=BYTES)
    tokens = some_tokens(ours)
    targets = np.roll(tokens, -1, axis=1)
    take = step.build(config, ours)
    _, count, gradients = take.gradients(mx.random.key(0), mx.array(1.0), mx.array(tokens), mx.array(targets))

    theirs = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True).eval()
    out = theirs(torch.tensor(tokens)).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(out, torch.tensor(targets).flatten(), reduction="sum").backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(expected) == len(tree_flatten(gradients)) and count.item() == targets.size
    for name, got in tree_flatten(gradients):
        letter = "A" if name.endswith("a") else "B"
        want = expected[f"base_model.model.transformer.{name[:-1]}{letter}.default.weight"].T
        assert np.abs(np.array(got) - want).max() < 1e-4 * max(1, np.abs(want).max()), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_folder_gives_the_same_logits_in_peft_in_mlx_lm_and_here(base, kind, tmp_path):
    model, _ = adapted(base, **KINDS[kind])
    folder, fused = tmp_path / "adapter", tmp_path / "fused"
    checkpoint.save(folder, model, vocabulary=BYTES)
    tokens = some_tokens(model)
    want = logits(model, tokens)
    assert np.abs(want - logits(checkpoint.load(base), tokens)).max() > 0.1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
    also, _ = mlx_lm.load(str(base), adapter_path=str(folder))
    ours = pretrained.load(folder)
    assert np.abs(logits(ours, tokens) - want).max() < 1e-4
    assert np.abs(torch_logits(theirs, tokens) - want).max() < 1e-4
    assert np.abs(np.array(also(mx.array(tokens))) - want).max() < 1e-4

    checkpoint.save(fused, ours, vocabulary=BYTES)
    whole, _ = mlx_lm.load(str(fused))
    assert np.abs(np.array(whole(mx.array(tokens))) - want).max() < 1e-4
    whole = transformers.AutoModelForCausalLM.from_pretrained(fused).eval()
    assert np.abs(torch_logits(whole, tokens) - want).max() < 1e-4


@pytest.mark.parametrize(
    "fields", [{}, {"use_rslora": True}, {"target_modules": ["c_attn", "c_proj", "c_fc"]}], ids=str
)
def test_pefts_own_folders_open_here(base, fields, tmp_path):
    settings = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", init_lora_weights=False, **fields)
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), settings).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = pretrained.load(pretrained.find(tmp_path / "adapter"))
    tokens = some_tokens(ours)
    want = torch_logits(theirs, tokens)
    assert np.abs(want - logits(checkpoint.load(base), tokens)).max() > 0.01
    assert np.abs(logits(ours, tokens) - want).max() < 1e-4


def test_mlx_lms_own_folders_open_here(base, tmp_path):
    from mlx_lm.tuner.utils import linear_to_lora_layers

    parameters = {"rank": 4, "scale": 5.0, "dropout": 0.0, "keys": ["attn.c_attn", "mlp.c_proj"]}
    theirs, _ = mlx_lm.load(str(base))
    theirs.freeze()
    linear_to_lora_layers(theirs, 2, parameters)
    theirs.update(tree_map_with_path(lambda name, p: p + 0.1 * len(name) / 30, theirs.trainable_parameters()))
    arrays = dict(tree_flatten(theirs.trainable_parameters()))
    assert len(arrays) == 8
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    facts = {"model": str(base), "fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
    ours = pretrained.load(pretrained.find(tmp_path))
    tokens = some_tokens(ours)
    want = np.array(theirs(mx.array(tokens)))
    assert np.abs(want - logits(checkpoint.load(base), tokens)).max() > 0.1
    assert np.abs(logits(ours, tokens) - want).max() < 1e-4
