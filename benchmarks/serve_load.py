"""A server under load: 1, 8, 32 and 128 clients at once, beside mlx_lm's.

Each client asks POST /v1/completions for 32 tokens after a prompt of about 20, again and again without a pause; no two
prompts are the same. GPT-2's 124M with random weights, each server with its own defaults.

With --adapters this server alone is measured: the base without adapters, the base where three are served, one of them
for all clients, and all four at random.
"""

import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import httpx

from gpt2_mlx import cli, device
from gpt2_mlx.config import PRESETS
from gpt2_mlx.corpus.source import find

from .common import alternate, append, introduce, machine, medians, require, table
from .servers import Server, running
from .weights import save_adapter, save_random

MAX_TOKENS = 32
WORDS = 16  # of Shakespeare: about 20 tokens


@dataclass(frozen=True)
class Settings:
    """How many tokens a second a server generates for its clients, beside mlx_lm's server."""

    quick: bool = False
    """One round of one request a client, without 128 clients, instead of three of three."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    clients: tuple[int, ...] = ()
    """Numbers of clients to measure. Default: all."""
    adapters: bool = False
    """Measure adapters that are served by name, beside one model alone, instead of mlx_lm's server."""


def main() -> None:
    settings = cli.parse(Settings)
    if not settings.adapters:
        require("mlx_lm")
    on_gpu = device.select(settings.device) == "gpu"
    facts = machine("httpx") if settings.adapters else machine("mlx-lm", "httpx")
    introduce(facts)
    words = find("shakespeare").files[0].read_text().split()
    prompts = (" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS))
    rounds, requests = (1, 1) if settings.quick else (3, 3)
    with tempfile.TemporaryDirectory() as folder:
        model = save_random(PRESETS["gpt2"], Path(folder) / "gpt2")
        where = "gpu" if on_gpu else "cpu"
        with (beside_adapters if settings.adapters else beside_mlx_lm)(model, where) as servers:
            for clients in settings.clients or ((1, 8, 32) if settings.quick else (1, 8, 32, 128)):
                contestants = {
                    name: partial(load, server, clients, requests * clients, prompts, models)
                    for name, (server, models) in servers.items()
                }
                results = alternate(rounds, contestants)
                print(report(clients, results))
                name = "serve_load_adapters" if settings.adapters else "serve_load"
                append(name, clients=clients, requests=requests * clients, results=results, **facts)


Contestants = dict[str, tuple[Server, list[str]]]  # a server, and the models that requests name, at random


@contextlib.contextmanager
def beside_mlx_lm(model: Path, where: str) -> Iterator[Contestants]:
    with running("gpt2_mlx", model, where) as ours, running("mlx_lm", model, where) as theirs:
        yield {"gpt2_mlx": (ours, [ours.model]), "mlx_lm": (theirs, [theirs.model])}


@contextlib.contextmanager
def beside_adapters(model: Path, where: str) -> Iterator[Contestants]:
    names = ["first", "second", "third"]
    folders = [save_adapter(model, model.parent / name) for name in names]
    flags = [part for name, folder in zip(names, folders) for part in ("--adapter", f"{name}={folder}")]
    with running("gpt2_mlx", model, where) as one, running("gpt2_mlx", model, where, *flags) as several:
        yield {
            "gpt2_mlx": (one, [one.model]),
            "base beside adapters": (several, [several.model]),
            "one adapter": (several, names[:1]),
            "base and three mixed": (several, [several.model, *names]),
        }


def load(server: Server, clients: int, requests: int, prompts, models: list[str] | None = None) -> dict:
    """What so many clients get, who share so many requests; each names one of the models."""
    pick = random.Random(0)
    asked = [(next(prompts), pick.choice(models or [server.model])) for _ in range(requests)]
    return asyncio.run(_load(server, clients, asked))


async def _load(server: Server, clients: int, asked: list[tuple[str, str]]) -> dict:
    tokens, latencies, errors = 0, [], []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:

        async def client() -> None:
            nonlocal tokens
            while asked:
                prompt, model = asked.pop()
                request = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0.8}
                began = time.perf_counter()
                try:
                    response = await http.post("/v1/completions", json=request)
                    response.raise_for_status()
                except httpx.HTTPError as error:
                    errors.append(repr(error))
                    continue
                latencies.append(time.perf_counter() - began)
                tokens += response.json()["usage"]["completion_tokens"]

        began = time.perf_counter()
        await asyncio.gather(*[client() for _ in range(clients)])
        seconds = time.perf_counter() - began
    latency = statistics.median(latencies) if latencies else float("nan")
    return {"tokens_per_s": tokens / seconds, "median_latency_s": latency, "errors": errors}


def report(clients: int, results: dict[str, list[dict]]) -> str:
    rates = medians({name: [r["tokens_per_s"] for r in rounds] for name, rounds in results.items()})
    latencies = medians({name: [r["median_latency_s"] for r in rounds] for name, rounds in results.items()})
    rows = [
        [
            name,
            f"{rate:.1f}",
            f"{rates['gpt2_mlx'] / rate:.2f}" if rate else "",
            f"{latencies[name]:.2f}",
            str(sum(len(r["errors"]) for r in results[name])),
        ]
        for name, rate in rates.items()
    ]
    return table([f"clients: {clients}", "tokens/s", "ours to it", "median latency, s", "errors"], rows)


if __name__ == "__main__":
    cli.run(main)
