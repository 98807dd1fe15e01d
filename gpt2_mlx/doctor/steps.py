"""Checks of a training step: compiled, with dropout, in 16 bits, recomputed, on short windows, with Muon; a resume."""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .. import device
from ..corpus.loader import IGNORE
from ..training import precision
from ..training.step import Batch
from . import reference
from .finding import Finding, within, worst
from .specimens import as_float64, batch, fit, model, settings, step, trainer
from .tolerance import tolerance

OF_64 = {"n_head": 1, "n_embd": 64, "block_size": 32}  # a model with one head of 64, as GPT-2's are


def compiled(_: Path) -> Finding:
    """One step of AdamW, compiled and plain."""
    return _compare(_moments(compile=True), _moments(compile=False), 10 * tolerance())


def dropout(_: Path) -> Finding:
    def losses(dropout: float) -> list[float]:
        config = settings(dropout=dropout)
        take_step = step(config)
        return [take_step([batch(config)], 0.0, number)[0].item() for number in (0, 1, 0)]

    first, second, again = losses(0.5)
    off = losses(0.0)[0]
    faults = [] if first == again else [f"the same key gave {first:.6f} and {again:.6f}"]
    faults += [] if first != second else ["two steps dropped the same"]
    faults += [] if first != off else ["nothing was dropped"]
    losses_found = f"losses {first:.4f}, {second:.4f}, {again:.4f} by keys 0, 1, 0"
    return Finding(not faults, "; ".join([losses_found, *faults]))


def in_bfloat16(_: Path) -> Finding:
    """The gradients in bfloat16, a GPU's default, against those in float32."""
    return _compare(_moments(dtype="bfloat16", **OF_64), _moments(**OF_64), 2 * tolerance("bfloat16"))


def in_float16(_: Path) -> Finding:
    """The gradients in float16 with its loss scale, against those in float32; clipping would hide a wrong scale."""
    exact = _moments(grad_clip=0.0, **OF_64)
    return _compare(_moments(dtype="float16", grad_clip=0.0, **OF_64), exact, 2 * tolerance("float16"))


def recomputed(_: Path) -> Finding:
    """The gradients with --grad-checkpoint: the second forward pass must drop what the first has dropped."""
    return _compare(_moments(grad_checkpoint=True, **OF_64), _moments(**OF_64), 10 * tolerance())


def short_windows(_: Path) -> Finding:
    """The gradients of windows of 8 tokens, for which a GPU may have no fused kernel that can learn.

    Longer windows have the same gradients where no target after the eighth counts.
    """
    shape = {**OF_64, "block_size": 16, "dropout": 0.0}
    tokens, targets = batch(settings(**shape))  # (B, 16)
    first = mx.where(mx.arange(16) < 8, targets, IGNORE)
    short = _moments((tokens[:, :8], targets[:, :8]), **shape)
    return _compare(short, _moments((tokens, first), **shape), 10 * tolerance())


def muon(_: Path) -> Finding:
    """What a step of Muon adds to the blocks' matrices, against NumPy, given the step's own gradients."""
    rate, errors = 0.01, {}
    config = settings(optimizer="muon", weight_decay=0.5, dropout=0.0, **OF_64)
    take_step, tokens = step(config), batch(config)
    gradients = take_step.gradients(mx.random.key(0), mx.array(1.0), *tokens)[2]
    gradients = {name: np.array(g, np.float64) for name, g in tree_flatten(gradients)}
    before = as_float64(take_step.model)
    mx.eval(take_step([tokens], rate), take_step.state)
    for name, after in as_float64(take_step.model).items():
        if name.startswith("h.") and after.ndim == 2:
            moved = after - before[name] * (1 - rate * config.weight_decay)
            expected = -rate * 0.2 * max(after.shape) ** 0.5 * reference.orthogonal(gradients[name])
            errors[name] = np.linalg.norm(moved - expected) / np.linalg.norm(expected), 10 * tolerance()
    return worst(errors)


def resume(folder: Path) -> Finding:
    """A run of 4 steps against a run that is resumed from its checkpoint of step 2."""
    straight = trainer(folder / "straight")
    fit(straight)
    saved = folder / "resumed" / "step-00000002"
    shutil.copytree(straight.run / saved.name, saved)
    resumed = trainer(saved.parent)
    resumed.restore(saved)
    fit(resumed)
    last = "step-00000004"
    files = [f"{last}/{name}" for name in ("model.safetensors", "optimizer.safetensors")]
    if all((resumed.run / file).read_bytes() == (straight.run / file).read_bytes() for file in files):
        return Finding(True, "the same bits as a run that was never stopped")
    begun, ended, other = (
        np.concatenate([p.ravel() for p in as_float64(model).values()])
        for model in (model(straight.model.config), straight.model, resumed.model)
    )
    error = float(np.linalg.norm(other - ended) / np.linalg.norm(ended - begun))
    if device.on_gpu():  # a GPU adds up the gradient of an embedding in no fixed order
        return within(error, 0.01, "not bit for bit on this GPU; relative to what was learnt,")
    return Finding(False, f"not the bits of a run without a stop: {error:.1e} of what was learnt", {"error": error})


def _moments(data: Batch | None = None, **fields) -> dict[str, np.ndarray]:
    """The first moments after one step of AdamW, which are the gradients, scaled, by the parameters' names."""
    config = settings(**{"compile": device.on_gpu(), **fields})  # on a CPU new kernels would take g++ ten seconds
    take_step = step(config)
    scale = precision.first_scale(config.dtype)
    mx.eval(take_step([data or batch(config)], 1e-3, loss_scale=scale), take_step.state)
    state = tree_flatten(take_step.optimizer.state)
    return {name: np.array(x, np.float64) for name, x in state if name.endswith(".m")}


def _compare(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], limit: float) -> Finding:
    """The error of the parameter whose moment is farthest off, relative to the moment's norm."""
    errors = {name: np.linalg.norm(got[name] - m) / np.linalg.norm(m) for name, m in expected.items()}
    return worst({_parameter(name): (error, limit) for name, error in errors.items()})


def _parameter(name: str) -> str:
    """ "h.0.attn.c_attn.weight" of "states.0.h.0.attn.c_attn.weight.m", as the optimizer's state names its moment."""
    return name.split(".", 2)[2].removesuffix(".m")
