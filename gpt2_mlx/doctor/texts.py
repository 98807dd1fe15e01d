"""Checks of generation: with a cache, in a crowd, in another thread and in the server's process."""

import contextlib
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np

from .. import checkpoint, device
from ..generation.engine import Engine
from ..generation.params import SamplingParams
from ..generation.sampling import uniform
from ..model import GPT2
from ..serving import messages, worker
from ..serving.config import ServeConfig
from . import reference
from .finding import Finding, within
from .specimens import generate, model, tokens
from .tolerance import tolerance

LONGEST = 60.0  # seconds that the server's process may take
FREE = {"temperature": 1.0, "top_k": 0}  # draw from all tokens


def cached(_: Path) -> Finding:
    """The log-probabilities of the engine's tokens, against those of one pass over the whole text."""
    specimen, prompt = model(), tokens(1, 9)[0].tolist()
    text = generate(Engine(specimen, 1), [prompt], temperature=0, max_tokens=50, logprobs=0)[0]
    whole = np.array(specimen(mx.array([[*prompt, *(token.id for token in text)]]))[0], np.float64)
    whole -= np.log(np.exp(whole - whole.max(-1, keepdims=True)).sum(-1, keepdims=True)) + whole.max(-1, keepdims=True)
    expected = [whole[len(prompt) - 1 + i, token.id] for i, token in enumerate(text)]
    scale = max(np.abs(whole).max(), 1)
    error = max(abs(token.logprob - e) for token, e in zip(text, expected)) / scale
    return within(error, tolerance())


def batched(_: Path) -> Finding:
    """The texts of a crowd against each text alone. A GPU may round them differently, above all in TF32: there they may
    part where a draw lies between two tokens."""
    specimen = model()
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 17, 30, 9, 1)]
    together = _ids(Engine(specimen, 4), prompts)
    alone = [_ids(Engine(specimen, 4), [prompt], seed)[0] for seed, prompt in enumerate(prompts)]
    parted = [seed for seed in range(len(prompts)) if together[seed] != alone[seed]]
    text = f"{len(prompts) - len(parted)} of {len(prompts)} texts are the same as alone"
    if not parted:
        return Finding(True, text)
    if not device.on_gpu():
        return Finding(False, f"{text}; on a CPU all must be")
    distance = max(_distance(specimen, prompts[seed], together[seed], alone[seed], seed) for seed in parted)
    return within(distance, tolerance(), f"{text}; the others part where a draw is beside a token's share by")


def _distance(specimen: GPT2, prompt: list[int], text: list[int], other: list[int], seed: int) -> float:
    """How far the draw where two texts part lies from the shares of both tokens."""
    at = next((i for i, pair in enumerate(zip(text, other)) if len(set(pair)) > 1), None)
    if at is None:  # one ended before the other
        return np.inf
    context = [*prompt, *text[:at]]
    logits = np.array(specimen(mx.array([context]))[0, -1], np.float64)
    low, high = reference.shares(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    draw = uniform(seed, at)
    return max(max(low[token] - draw, draw - high[token]) for token in (text[at], other[at]))


def threaded(_: Path) -> Finding:
    """An engine in a second thread, whose streams are its own; afterwards the first thread must still compute."""
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (12, 5)]
    before = _ids(Engine(model(), 2), prompts)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(lambda: _ids(Engine(model(), 2), prompts)).result()
    after = _ids(Engine(model(), 2), prompts)
    if there != before:
        return Finding(False, "a second thread drew another text than the first")
    if after != before:
        return Finding(False, "the first thread drew another text after the second had ended")
    return Finding(True, "the same texts in a second thread, and in the first one when that had ended")


def served(folder: Path) -> Finding:
    """The engine's process, as the server starts and ends it: it must draw the text that is drawn here, and end."""
    checkpoint.save(folder / "served", model())
    specimen, prompt = checkpoint.load(folder / "served"), tokens(1, 12)[0].tolist()
    [expected] = _ids(Engine(specimen, 1), [prompt])
    chosen = ServeConfig(device=mx.default_device().type.name, dtype="float32", max_batch_size=1)
    process = worker.launch(chosen, folder / "served")
    watch = threading.Timer(LONGEST, process.kill)
    watch.start()
    try:
        got = _ask(process, messages.Add(0, prompt, _params(0), 0, folder / "served"))
        with contextlib.suppress(BrokenPipeError):  # it has ended before
            process.stdin.close()  # as the service does
        status = process.wait()
    finally:
        watch.cancel()
        process.kill()
    if got != expected:
        return Finding(
            False, f"it drew {len(got)} tokens, not the {len(expected)} that are drawn here; status {status}"
        )
    return Finding(status == 0, f"the same text as here; it ended with status {status}")


def _ask(process: subprocess.Popen, question: messages.Add) -> list[int]:
    """The ids of the tokens that the engine's process answers with; those up to its end where it dies."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(messages.pack(question))
        process.stdin.flush()
    ids = []
    while message := messages.read(process.stdout):
        if isinstance(message, (messages.NotLoaded, messages.NotTaken)):
            raise RuntimeError(message.reason)
        for output in message.outputs if isinstance(message, messages.Step) else ():
            ids += [token.id for token in output.tokens]
            if output.finish_reason:
                return ids
    return ids


def _params(seed: int) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=24, **FREE)


def _ids(engine: Engine, prompts: list[list[int]], first_seed: int = 0) -> list[list[int]]:
    texts = generate(engine, prompts, first_seed, max_tokens=24, **FREE)
    return [[token.id for token in text] for text in texts]
