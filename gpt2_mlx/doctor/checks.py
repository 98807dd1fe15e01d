"""Checks of the mathematics: this machine against NumPy, and each fast computation against a plain one."""

import contextlib
import dataclasses
import functools
import io
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from .. import device
from ..config import GPT2Config
from ..corpus.dataset import TokenDataset
from ..generation.engine import Engine
from ..generation.params import SamplingParams
from ..model import GPT2, CausalSelfAttention
from ..tokenizer import VOCAB_SIZE
from ..training import step
from ..training.config import TrainConfig
from ..training.loss import cross_entropy
from ..training.step import Step
from ..training.trainer import Trainer
from . import reference
from .finding import Finding, difference, within

SHAPE = GPT2Config(block_size=64, vocab_size=211, n_layer=2, n_head=2, n_embd=128)  # heads of 64, as all of GPT-2's


@functools.cache
def product_error() -> float:
    """The error of one float32 matrix product on this machine: about 1e-6, or 1e-3 where MLX computes it in TF32."""
    a, b = np.random.RandomState(0).standard_normal((2, 512, 512)).astype(np.float32)
    return difference(mx.matmul(mx.array(a), mx.array(b)), a.astype(np.float64) @ b)


def tolerance() -> float:
    """The error that is allowed after many products in a row."""
    return min(max(2e-5, 50 * product_error()), 0.03)


def products(_: Path) -> Finding:
    return within(product_error(), 2e-3)


def logits(_: Path) -> Finding:
    model, tokens = _model(), _tokens(2, SHAPE.block_size)
    expected = reference.logits(_as_float64(model), tokens, SHAPE.n_layer, SHAPE.n_head)
    return within(difference(model(mx.array(tokens)), expected), tolerance())


def gradient(_: Path) -> Finding:
    """Each parameter's gradient along a random direction, against the difference of two losses of the reference."""
    random, distance = np.random.RandomState(1), 1e-5
    model, tokens, targets = _model(), _tokens(1, 24), _tokens(1, 24, seed=1)

    def loss(tokens: mx.array, targets: mx.array) -> mx.array:
        return cross_entropy(model.hidden(tokens), model.wte.weight, targets)[0]

    gradients = nn.value_and_grad(model, loss)(mx.array(tokens), mx.array(targets))[1]
    parameters, worst = _as_float64(model), 0.0
    for name, g in tree_flatten(gradients):
        g, direction = np.array(g, np.float64), random.standard_normal(g.shape)
        plus, minus = (
            reference.loss({**parameters, name: parameters[name] + by * direction}, tokens, targets, 2, SHAPE.n_head)
            for by in (distance, -distance)
        )
        error = abs((g * direction).sum() - (plus - minus) / (2 * distance)) / max(np.linalg.norm(g), 1e-3)
        worst = max(worst, error) if error == error else error  # a nan stays
    return within(worst, 10 * tolerance())


def compiled_step(_: Path) -> Finding:
    """One step of AdamW, compiled and plain. Its first moments are compared, since they are the gradients, scaled."""
    moments = []
    for compiled in (True, False):
        take_step = _step(_settings(compile=compiled))
        mx.eval(take_step([_batch()], 1e-3), take_step.state)
        state = tree_flatten(take_step.optimizer.state)
        moments.append(np.concatenate([np.array(x).ravel() for name, x in state if name.endswith(".m")]))
    return within(difference(*moments), 10 * tolerance())


def compiled_dropout(_: Path) -> Finding:
    def losses(dropout: float) -> list[float]:
        take_step = _step(_settings(dropout=dropout))
        return [take_step([_batch()], 0.0, number)[0].item() for number in (0, 1, 0)]

    first, second, again = losses(0.5)
    off = losses(0.0)[0]
    faults = [] if first == again else [f"the same key gave {first:.6f} and {again:.6f}"]
    faults += [] if first != second else ["two steps dropped the same"]
    faults += [] if first != off else ["nothing was dropped"]
    losses_found = f"losses {first:.4f}, {second:.4f}, {again:.4f} by keys 0, 1, 0"
    return Finding(not faults, "; ".join([losses_found, *faults]))


def attention(_: Path) -> Finding:
    """The fused kernel against softmax(q k^T) v, which the model uses with dropout: value and gradient."""
    fused, plain = (CausalSelfAttention(dataclasses.replace(SHAPE, dropout=p, block_size=128)) for p in (0.0, 1e-9))
    plain.update(fused.parameters())
    x, weights = mx.random.normal((2, 2, 128, SHAPE.n_embd), key=mx.random.key(0))

    def both(layer: CausalSelfAttention) -> tuple[mx.array, mx.array]:
        key = mx.random.key(1)
        return layer(x, key), mx.grad(lambda x: mx.sum(layer(x, key) * weights))(x)

    return within(max(difference(*pair) for pair in zip(both(fused), both(plain))), tolerance())


def loss(_: Path) -> Finding:
    """The model's cross entropy over the whole vocabulary against the one of mlx.nn: value and gradients."""
    hidden = mx.random.normal((256, 64), key=mx.random.key(0))
    wte = mx.random.normal((VOCAB_SIZE, 64), key=mx.random.key(1)) * 0.3
    targets = mx.random.randint(0, VOCAB_SIZE, (256,), key=mx.random.key(2))

    def both(loss) -> list[mx.array]:
        value, gradients = mx.compile(mx.value_and_grad(loss, argnums=(0, 1)))(hidden, wte)
        return [value, *gradients]

    ours = both(lambda h, w: cross_entropy(h, w, targets)[0])
    plain = both(lambda h, w: nn.losses.cross_entropy(h @ w.T, targets, reduction="sum"))
    return within(max(difference(*pair) for pair in zip(ours, plain)), 2 * tolerance())


def resume(folder: Path) -> Finding:
    """A run of 4 steps against a run that is resumed from its checkpoint of step 2."""
    straight = _trainer(folder / "straight")
    _fit(straight)
    saved = folder / "resumed" / "step-00000002"
    shutil.copytree(straight.run / saved.name, saved)
    resumed = _trainer(saved.parent)
    resumed.restore(saved)
    _fit(resumed)
    last = "step-00000004"
    files = [f"{last}/{name}" for name in ("model.safetensors", "optimizer.safetensors")]
    if all((resumed.run / file).read_bytes() == (straight.run / file).read_bytes() for file in files):
        return Finding(True, "the same bits as a run that was never stopped")
    begun, ended, other = (
        np.concatenate([p.ravel() for p in _as_float64(model).values()])
        for model in (_model(straight.model.config), straight.model, resumed.model)
    )
    error = float(np.linalg.norm(other - ended) / np.linalg.norm(ended - begun))
    if device.on_gpu():  # a GPU adds up the gradient of an embedding in no fixed order
        return within(error, 0.01, "not bit for bit on this GPU; relative to what was learnt,")
    return Finding(False, f"not the bits of a run without a stop: {error:.1e} of what was learnt", {"error": error})


def cached(_: Path) -> Finding:
    """The log-probabilities of the engine's tokens, against those of one pass over the whole text."""
    model, prompt = _model(), _tokens(1, 9)[0].tolist()
    tokens = _generate(Engine(model, 1), [prompt], temperature=0, max_tokens=50, logprobs=0)[0]
    text = mx.array([[*prompt, *(token.id for token in tokens)]])
    whole = np.array(model(text)[0], np.float64)
    whole -= np.log(np.exp(whole - whole.max(-1, keepdims=True)).sum(-1, keepdims=True)) + whole.max(-1, keepdims=True)
    expected = [whole[len(prompt) - 1 + i, token.id] for i, token in enumerate(tokens)]
    scale = max(np.abs(whole).max(), 1)
    error = max(abs(token.logprob - e) for token, e in zip(tokens, expected)) / scale
    return within(error, tolerance())


def batched(_: Path) -> Finding:
    model = _model()
    prompts = [_tokens(1, n, seed=n)[0].tolist() for n in (3, 17, 30, 9, 1)]
    together = _generate(Engine(model, 4), prompts, max_tokens=24)
    alone = [_generate(Engine(model, 4), [prompt], first_seed=i, max_tokens=24)[0] for i, prompt in enumerate(prompts)]
    same = sum(a == b for a, b in zip(together, alone))
    return Finding(same == len(prompts), f"{same} of {len(prompts)} texts are the same as alone")


def _generate(engine: Engine, prompts: list[list[int]], first_seed: int = 0, **params) -> list[list]:
    """The tokens that follow each prompt, where prompt number i has the seed first_seed + i."""
    ids = [engine.add(prompt, SamplingParams(seed=first_seed + i, **params)) for i, prompt in enumerate(prompts)]
    texts = {id: [] for id in ids}
    while engine.has_work:
        for output in engine.step():
            texts[output.id] += output.tokens
    return [texts[id] for id in ids]


def _model(config: GPT2Config = SHAPE) -> GPT2:
    """A model in which no parameter has its initial value of 0 or 1."""
    model = GPT2(config)
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape, key=mx.random.key(p.size)), model.parameters()))
    mx.eval(model.parameters())
    return model


def _tokens(batch_size: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, SHAPE.vocab_size, (batch_size, length))


def _batch() -> tuple[mx.array, mx.array]:
    return mx.array(_tokens(4, 16, seed=2)), mx.array(_tokens(4, 16, seed=3))


def _as_float64(model: GPT2) -> dict[str, np.ndarray]:
    return {name: np.array(p, np.float64) for name, p in tree_flatten(model.parameters())}


def _settings(**fields) -> TrainConfig:
    """Settings of a very small model, with dropout."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
    intervals = {"eval_interval": 4, "save_interval": 2, "sample_interval": 0}
    recipe = {"dropout": 0.1, "batch_size": 4, "max_steps": 4, "optimizer": "adamw"}
    return TrainConfig(**{**recipe, **shape, **intervals, **fields}).resolved(on_gpu=False)


def _step(config: TrainConfig, vocab_size: int = SHAPE.vocab_size) -> Step:
    return step.build(config, _model(dataclasses.replace(config.model_config(), vocab_size=vocab_size)))


def _trainer(run: Path) -> Trainer:
    """A trainer of a very small model on random tokens. It has the whole vocabulary, since it generates samples."""
    run.mkdir(exist_ok=True)
    config, tokens = _settings(), _tokens(1, 900)[0].astype(np.uint16)
    return Trainer(config, _step(config, VOCAB_SIZE), TokenDataset(tokens), run)


def _fit(trainer: Trainer) -> None:
    """Train without output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit()
