"""Where a step of the engine goes: GPT-2's 124M with random weights, prompts of 20 tokens.

The parts are measured by themselves in the shapes of the step, so that what is left over is the rest of it: graph,
residual sums, outputs.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpt2_mlx import blas, cli, device  # first: it puts a BLAS in front of MLX's

# isort: split
import mlx.core as mx

from gpt2_mlx.config import PRESETS
from gpt2_mlx.generation import sampling
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.generation.scheduler import Sequence
from gpt2_mlx.kv_cache import KVCache
from gpt2_mlx.model import GPT2, gelu

from .common import append, introduce, machine, table

LENGTH = 20  # tokens of a prompt


@dataclass(frozen=True)
class Settings:
    """Milliseconds of a step by rows and parts, medians."""

    rows: tuple[int, ...] = (1, 8, 32)
    """Numbers of texts that are generated at once."""
    rounds: int = 15
    """How often each part is measured."""
    clock: Literal["wall", "processor"] = "wall"
    """With "processor" one thread computes and its time is told, which a busy machine disturbs less."""


def main() -> None:
    settings = cli.parse(Settings)
    device.select()
    if settings.clock == "processor":
        blas.set_threads(1)
    facts = machine()
    introduce(facts)
    model = GPT2(PRESETS["gpt2"])
    mx.eval(model.parameters())
    results = [measure(model, n, settings) for n in settings.rows]
    print(table([*results[0]], [[f"{value:.4g}" for value in result.values()] for result in results]))
    append("engine_step", clock=settings.clock, results=results, **facts)


def measure(model: GPT2, n: int, settings: Settings) -> dict[str, float]:
    """The milliseconds of the parts with n rows."""
    clock = time.perf_counter if settings.clock == "wall" else time.process_time
    params = SamplingParams(max_tokens=settings.rounds + 3)
    engine, prompts = Engine(model, n), [[i + 1] * LENGTH for i in range(n)]

    def ms(call: Callable[[], object]) -> float:
        began = clock()
        mx.eval(call())
        return 1e3 * (clock() - began)

    def median(call: Callable[[], object]) -> float:
        return statistics.median([ms(call) for _ in range(settings.rounds + 1)][1:])

    def read_prompts() -> None:
        while not engine.step():
            pass

    for prompt in prompts:
        engine.add(prompt, params)
    found = {"rows": n, "prompts": ms(read_prompts)}
    step = median(lambda: engine.step() and None)
    parts = {name: median(part) for name, part in _parts(model, prompts, params).items()}
    return {**found, "step": step, **parts, "rest": step - sum(parts.values())}


def _parts(model: GPT2, prompts: list[list[int]], params: SamplingParams) -> dict[str, Callable[[], object]]:
    """What a step computes, part by part."""
    B, C, H = len(prompts), model.config.n_embd, model.config.n_head
    x, wide = mx.random.normal((B, 1, C)), mx.random.normal((B, 1, 4 * C))
    q, logits = mx.random.normal((B, H, 1, C // H)), mx.random.normal((B, model.config.vocab_size))
    cache = KVCache(model.config, B)
    view = cache.extend(list(range(B)), [LENGTH] * B, [1] * B, width=1)
    sequences = [Sequence(i, prompt, params, model.config.block_size) for i, prompt in enumerate(prompts)]
    mx.eval(x, wide, q, logits, view.arrays)
    return {
        "blocks' products": lambda: [
            [b.attn.c_attn(x), b.attn.c_proj(x), b.mlp.c_fc(x), b.mlp.c_proj(wide)] for b in model.h
        ],
        "head": lambda: model.wte.as_linear(x),
        "attention": lambda: [*(layer.attend(q, q, q, 0.125) for layer in view.layers), *cache.state()],
        "norms": lambda: [model.ln_f(x), *([b.ln_1(x), b.ln_2(x)] for b in model.h)],
        "GELU": lambda: [gelu(wide) for _ in model.h],
        "sampling": lambda: sampling.sample(logits, sequences, [0.5] * B),
    }


if __name__ == "__main__":
    cli.run(main)
