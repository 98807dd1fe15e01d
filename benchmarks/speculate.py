"""What drafts bring: one text with `--speculate auto` and without, where it repeats itself and where it does not.

The weights of 124M are random, since a pass takes the same time with any. What is drawn is replaced by the next token
of a given text, so drafts are right and wrong as often as they are in that text. All else runs as ever, the draws too.

With --checkpoint a model that has learnt goes on from the same beginnings, and what it draws counts. Then a draft model
may be measured beside.
"""

import contextlib
import dataclasses
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

from tiktoken import Encoding

from gpt2_mlx import cli, device, pretrained, tokenizer
from gpt2_mlx.config import PRESETS
from gpt2_mlx.generation import draft_model, engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.model import GPT2

from .common import alternate, append, introduce, machine, table

ROOT = Path(__file__).parents[1]
N_PROMPT = 256
PLAY = ROOT / "data" / "shakespeare" / "input.txt"


@dataclass(frozen=True)
class Settings:
    """How much faster texts are with drafts; 1 is as fast as without."""

    quick: bool = False
    """Texts of 128 tokens and two rounds, instead of 512 and five."""
    preset: Literal["tiny", "gpt2"] = "gpt2"
    """The model's shape."""
    checkpoint: str | None = None
    """Run or checkpoint of a model that has learnt, instead of random weights."""
    draft_model: str | None = None
    """That of a small one that drafts for it."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute. On a GPU auto drafts nothing, and 7 is measured instead."""
    temperature: float = 0.8
    """That of the draws, which take time though their tokens are replaced; top_k is 50."""


def main() -> None:
    import mlx.core as mx  # not before gpt2_mlx

    settings = cli.parse(Settings)
    if settings.draft_model and not settings.checkpoint:
        raise ValueError(
            f"--draft-model is {settings.draft_model}, but random weights cannot be guessed: give --checkpoint"
        )
    on_gpu = device.select(settings.device) == "gpu"
    facts = machine()
    introduce(facts)
    rounds, n = (2, 128) if settings.quick else (5, 512)
    if settings.checkpoint:
        folder = pretrained.find(settings.checkpoint)
        model, encoding = pretrained.load(folder), pretrained.vocabulary(folder).encoding
    else:
        model, encoding = GPT2(PRESETS[settings.preset]), tokenizer.load()
        mx.eval(model.parameters())
    n = min(n, (model.config.block_size - 1) // 2)
    ways, texts = {"off": {"speculate": "off"}, "auto": {"speculate": 7 if on_gpu else "auto"}}, texts_in(encoding)
    if settings.draft_model:
        small = pretrained.load(draft_model.find(settings.draft_model, folder))
        ways["draft model"] = {"speculate": "auto", "draft_model": small}
    engines = {way: engine.Engine(model, 1, **how) for way, how in ways.items()}  # for all texts, as a server has one
    contestants = {
        (name, way): lambda ids=ids, writer=writer: write(writer, ids[: N_PROMPT + n], settings)
        for name, ids in texts.items()
        for way, writer in engines.items()
    }
    measured = alternate(rounds, contestants)
    for name in texts:
        written = [each.pop("text") for way in ways for each in measured[name, way]]
        assert on_gpu or all(text == written[0] for text in written), "a draft changed a text"
    for way in [way for way in ways if way != "off"]:
        print(report(measured, texts, n, way))
    told = {" ".join(key): values for key, values in measured.items()}
    shape = dataclasses.asdict(model.config) if settings.checkpoint else settings.preset
    append("speculate", model=shape, n=n, measured=told, **facts)


def texts_in(encoding: Encoding) -> dict[str, list[int]]:
    """By name the tokens of a prompt and of what follows it."""
    play = PLAY.read_text(encoding="utf-8")
    code = (ROOT / "gpt2_mlx" / "training" / "config.py").read_text(encoding="utf-8")
    entries = [f'  {{"id": {i}, "name": "user {i}", "active": {str(i % 3 > 0).lower()}}},\n' for i in range(99)]
    encode = encoding.encode_ordinary
    passage = encode(play[50_000:])[:N_PROMPT]
    return {
        "a play": encode(play[100_000:120_000]),
        "code": encode(code),
        "a list": encode("[\n" + "".join(entries)),
        "a passage quoted": passage * 5,
    }


def write(writer: engine.Engine, ids: list[int], settings: Settings) -> dict:
    """Have an engine write a text; returns the seconds it took, without the prompt's, and its drafts."""
    prompt, text = ids[:N_PROMPT], ids[N_PROMPT:]
    prompt = prompt[-(writer.block_size // 2) :]
    writer.add(prompt, SamplingParams(max_tokens=len(text), temperature=settings.temperature, seed=0))
    outputs = []
    with contextlib.nullcontext() if settings.checkpoint else given(text):
        while not outputs:
            outputs += writer.step()
        began = time.process_time(), time.perf_counter()
        while writer.has_work:
            outputs += writer.step()
        ended = time.process_time(), time.perf_counter()
    drawn = [token.id for output in outputs for token in output.tokens]
    assert settings.checkpoint or drawn == text
    return {
        "text": drawn,
        "process_s": ended[0] - began[0],
        "wall_s": ended[1] - began[1],
        "passes": len(outputs),
        "drafted": sum(output.drafted for output in outputs),
        "accepted": sum(output.accepted for output in outputs),
    }


def given(text: list[int]) -> contextlib.AbstractContextManager:
    """Replaces what an engine draws by the tokens of a text; it draws all the same."""
    draw = engine.sample

    import mlx.core as mx  # not before gpt2_mlx

    def replaced(logits: mx.array, rows: list, draws: list[float]) -> mx.array:
        mx.eval(draw(logits, rows, draws))
        return mx.array([text[len(row.generated)] for row in rows])

    return mock.patch.object(engine, "sample", replaced)


def report(measured: dict[tuple[str, str], list[dict]], texts: dict, n: int, way: str) -> str:
    def median(name: str, way: str, key: str) -> float:
        return statistics.median(one[key] for one in measured[name, way])

    rows = []
    for name in texts:
        gains = [median(name, "off", key) / median(name, way, key) for key in ("wall_s", "process_s")]
        counts = [f"{median(name, way, key):.0f}" for key in ("passes", "drafted", "accepted")]
        rows.append([name, f"{n / median(name, 'off', 'wall_s'):.1f}", *(f"{gain:.2f}" for gain in gains), *counts])
    header = [f"{way}: {n} tokens of", "tokens/s without", "gain", "gain, processor", "passes", "drafted", "accepted"]
    return table(header, rows)


if __name__ == "__main__":
    cli.run(main)
