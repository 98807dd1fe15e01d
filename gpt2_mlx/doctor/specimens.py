"""The small models, texts and settings that the checks share."""

import contextlib
import dataclasses
import io
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..config import GPT2Config
from ..corpus.dataset import TokenDataset
from ..generation.engine import Engine
from ..generation.outputs import Token
from ..generation.params import SamplingParams
from ..model import GPT2
from ..tokenizer import VOCAB_SIZE
from ..training import step as steps
from ..training.config import TrainConfig
from ..training.step import Batch, Step
from ..training.trainer import Trainer

SHAPE = GPT2Config(block_size=64, vocab_size=211, n_layer=2, n_head=2, n_embd=128)  # heads of 64, as all of GPT-2's


def model(config: GPT2Config = SHAPE) -> GPT2:
    """A model in which no parameter has its initial value of 0 or 1."""
    model = GPT2(config)
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape, key=mx.random.key(p.size)), model.parameters()))
    mx.eval(model.parameters())
    return model


def tokens(batch_size: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, SHAPE.vocab_size, (batch_size, length))


def as_float64(model: GPT2) -> dict[str, np.ndarray]:
    return {name: np.array(p, np.float64) for name, p in tree_flatten(model.parameters())}


def generate(engine: Engine, prompts: list[list[int]], first_seed: int = 0, **params) -> list[list[Token]]:
    """The tokens that follow each prompt, where prompt number i has the seed first_seed + i."""
    ids = [engine.add(prompt, SamplingParams(seed=first_seed + i, **params)) for i, prompt in enumerate(prompts)]
    texts = {id: [] for id in ids}
    while engine.has_work:
        for output in engine.step():
            texts[output.id] += output.tokens
    return [texts[id] for id in ids]


def settings(**fields) -> TrainConfig:
    """Settings of a very small model, with dropout."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
    intervals = {"eval_interval": 4, "save_interval": 2, "sample_interval": 0}
    recipe = {"dropout": 0.1, "batch_size": 4, "max_steps": 4, "optimizer": "adamw"}
    return TrainConfig(**{**recipe, **shape, **intervals, **fields}).resolved(on_gpu=False)


def step(config: TrainConfig, vocab_size: int = SHAPE.vocab_size) -> Step:
    return steps.build(config, model(dataclasses.replace(config.model_config(), vocab_size=vocab_size)))


def batch(config: TrainConfig) -> Batch:
    shape = config.batch_size, config.block_size
    return mx.array(tokens(*shape, seed=2)), mx.array(tokens(*shape, seed=3))


def trainer(run: Path) -> Trainer:
    """A trainer of a very small model on random tokens. It has the whole vocabulary, since it generates samples."""
    run.mkdir(exist_ok=True)
    config, text = settings(), tokens(1, 900)[0].astype(np.uint16)
    return Trainer(config, step(config, VOCAB_SIZE), TokenDataset(text), run)


def fit(trainer: Trainer) -> None:
    """Train without output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit()
