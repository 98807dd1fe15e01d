"""Weights to measure with, made here: nothing is fetched."""

import dataclasses
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from gpt2_mlx import adapter, checkpoint, lora, pretrained, template, tokenizer
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2


def save_random(config: GPT2Config, folder: Path) -> Path:
    """Make a checkpoint folder of random weights, which mlx_lm and transformers open, too; it can chat."""
    checkpoint.save(folder, GPT2(config), vocabulary=_vocabulary())
    return folder


def save_adapter(base: Path, folder: Path, rank: int = 8) -> Path:
    """Make the folder of an adapter of a checkpoint, of all its projections, with random weights that change texts."""
    model = pretrained.load(base)
    facts = {"base": str(base), "sha256": adapter.fingerprint(base), "layers": model.config.n_layer}
    lora.add(model, lora.LoRA(rank=rank, alpha=2.0 * rank, dropout=0, targets=tuple(lora.TARGETS), **facts), seed=rank)
    mx.random.seed(rank)
    model.update(tree_map(lambda a: 0.1 * mx.random.normal(a.shape), model.trainable_parameters()))
    checkpoint.save(folder, model, vocabulary=_vocabulary())
    return folder


def _vocabulary() -> tokenizer.Vocabulary:
    return dataclasses.replace(tokenizer.gpt2(), template=template.OURS)
