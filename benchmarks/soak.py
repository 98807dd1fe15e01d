"""Long runs that try what the server promises.

The siege is everything at once: good, hostile, leaving, slow and half-open clients, and its engine killed; every seeded
text is compared with the one that the same request gets alone. `soak_promises` tells of the other parts. Nothing but
loopback is used. It ends with status 1 where a promise was broken.
"""

import asyncio
import dataclasses
import itertools
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from gpt2_mlx import cli
from gpt2_mlx.config import PRESETS, GPT2Config

from . import soak_promises as promises
from .common import append, introduce, machine, table
from .processes import children_of, megabytes
from .servers import running
from .soak_clients import HOSTILE, Clients, requests
from .weights import save_random

DEATHS = itertools.cycle((signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV))
HANG = signal.SIGSTOP
Part = Literal["siege", "audits", "superseding", "schemas", "prefixes"]


@dataclass(frozen=True)
class Settings:
    """Whether the server keeps its promises for long."""

    parts: tuple[Part, ...] = ("siege", "audits", "superseding", "schemas", "prefixes")
    """What to try."""
    quick: bool = False
    """Seconds instead of minutes."""
    checkpoint: Path | None = None
    """What to serve. Default: small models with random weights."""
    clients: int = 32
    """Clients at once, in the siege those that stream."""
    requests: int = 4096
    """Requests to audit."""
    typing_seconds: float = 60.0
    """How long one types, ten keys a second."""
    answers: int = 200
    """Answers in JSON, and requests with each setting of the prefix cache."""
    rounds: int = 5
    """How often answers in JSON and without a constraint take turns."""
    seconds: float = 120.0
    """How long all kinds of clients come together."""
    hostile_seconds: float = 60.0
    """How long each hostile request may take before it is left."""
    kill_every: float = 10.0
    """Seconds between two deaths of the engine's process."""
    malformed: int = 10_000
    """Requests that are none."""
    crowd: int = 1_000
    """Clients that come in the same moment."""
    picture: Path | None = None
    """Where to draw the memory of both processes over time: .png, .svg or .pdf."""


def main() -> None:
    settings = cli.parse(Settings)
    if settings.quick:
        quick = {"seconds": 8.0, "hostile_seconds": 4.0, "kill_every": 3.0, "malformed": 300, "crowd": 100}
        quick |= {"requests": 40, "typing_seconds": 2.0, "answers": 20, "rounds": 1}
        settings = dataclasses.replace(settings, **quick)
    facts = machine("httpx")
    introduce(facts)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in settings.parts:
            found = results[part] = asyncio.run(TRIALS[part](settings, Path(folder)))
            print(f"{part}:\n{report(found)}" if part == "siege" else f"{part}: {found}", flush=True)
    if settings.picture and "siege" in results:
        draw(results["siege"]["memory"], settings.picture)
    if not settings.quick:
        append("soak", settings={name: str(value) for name, value in vars(settings).items()}, results=results, **facts)
    if broken := [f"{name} in {part}" for part, found in results.items() for name in capitals(found)]:
        raise SystemExit(f"broken promises: {', '.join(broken)}")


def capitals(found: dict) -> list[str]:
    """The broken promises among what was counted, also in what one part counted apart."""
    inside = [name for value in found.values() if isinstance(value, dict) for name in capitals(value)]
    return [name for name in found if name.isupper()] + inside


def model_of(settings: Settings, folder: Path, shape: GPT2Config) -> Path:
    """What is served: by default random weights of a shape."""
    return settings.checkpoint or save_random(shape, folder / str(shape.block_size))


async def siege(settings: Settings, folder: Path) -> dict:
    model = model_of(settings, folder, GPT2Config(block_size=128, n_layer=2, n_head=2, n_embd=64))
    with running("gpt2_mlx", model, "cpu") as server:
        return await besiege(settings, server.url, server.pid)


def promise(trial: Callable[..., Awaitable[dict]], *names: str) -> Callable[..., Awaitable[dict]]:
    """A trial of `soak_promises` with settings of these names; its model has room for blocks of the prefix cache."""

    async def run(settings: Settings, folder: Path) -> dict:
        model = model_of(settings, folder, dataclasses.replace(PRESETS["tiny"], block_size=512))
        return await trial(model, *(getattr(settings, name) for name in names))

    return run


TRIALS: dict[Part, Callable[..., Awaitable[dict]]] = {
    "siege": siege,
    "audits": promise(promises.audits, "clients", "requests"),
    "superseding": promise(promises.superseding, "typing_seconds"),
    "schemas": promise(promises.schemas, "answers", "rounds"),
    "prefixes": promise(promises.prefixes, "answers"),
}


async def besiege(settings: Settings, url: str, service: int) -> dict:
    pick = random.Random(0)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        clients = Clients(http, requests(20, pick), pick)
        clients.expected = [await clients.text(body) for body in clients.bodies]
        memory: list[tuple[float, float, float]] = []
        watching = asyncio.create_task(watch_memory(service, memory))
        results: dict = {"hostile": {name: await hostile(settings, clients, body) for name, body in HOSTILE.items()}}
        moments = [settings.kill_every * i for i in range(1, int(settings.seconds / settings.kill_every))]
        deaths = [(moment, next(DEATHS)) for moment in moments]
        results["together"] = await together(settings, clients, service, settings.seconds, deaths)
        results["a hang"] = await together(settings, clients, service, settings.seconds / 4, [(2.0, HANG)])
        clients.counts.clear()
        await repeatedly(16, clients.malformed, settings.malformed)
        await asyncio.gather(*(clients.one_of_a_crowd() for _ in range(settings.crowd)))
        results["afterwards"] = dict(clients.counts)
        await asyncio.sleep(2)
        told = (await http.get("/metrics")).text
        watching.cancel()
    left = {name: float(told.split(f"\n{name} ")[1].split()[0]) for name in ("gpt2_running", "gpt2_queue_depth")}
    return results | {"left": left | ({"LEFT": True} if any(left.values()) else {}), "memory": memory}


async def hostile(settings: Settings, clients: Clients, body: dict) -> dict:
    """What a hostile request gets, and how long a bystander's one token takes meanwhile."""
    began, answer = time.monotonic(), []

    async def ask() -> None:
        response = await clients.http.post("/complete-sentence" if "text" in body else "/v1/completions", json=body)
        answer.append({"status": response.status_code, "bytes": len(response.content)})

    asking = asyncio.create_task(ask())
    times = await clients.bystander(lambda: answer or time.monotonic() - began > settings.hostile_seconds)
    asking.cancel()
    told = answer[0] if answer else {"status": "left after", "bytes": 0}
    return told | {"seconds": time.monotonic() - began, "median_s": statistics.median(times), "most_s": max(times)}


async def together(settings: Settings, clients: Clients, service: int, seconds: float, blows: list) -> dict:
    """All kinds of clients at once, while the engine's process gets blows, each (after seconds, a signal)."""
    clients.counts.clear()
    clients.longest_pause = 0.0
    began = time.monotonic()
    kinds = [clients.good] * settings.clients + [clients.half_open] * 40
    kinds += [clients.leaving, clients.malformed, clients.slow] * 4

    async def keep_on(kind: Callable[[], Awaitable]) -> None:
        while time.monotonic() < began + seconds:
            await kind()
            await asyncio.sleep(0.1)  # two cores are for the engine, not for a flood

    async def strike() -> None:
        for moment, blow in blows:
            await asyncio.sleep(began + moment - time.monotonic())
            os.kill(engine_of(service), blow)

    await asyncio.gather(strike(), *map(keep_on, kinds))
    return {**clients.counts, "blows": len(blows), "longest pause, s": round(clients.longest_pause, 1)}


async def repeatedly(n_at_once: int, client: Callable[[], Awaitable], n: int) -> None:
    numbers = iter(range(n))

    async def some() -> None:
        for _ in numbers:
            await client()

    await asyncio.gather(*(some() for _ in range(n_at_once)))


async def watch_memory(service: int, samples: list[tuple[float, float, float]]) -> None:
    """Note every second (seconds, MB of the service, MB of the engine's process)."""
    began = time.monotonic()
    while True:
        samples.append((time.monotonic() - began, megabytes(service), megabytes(engine_of(service))))
        await asyncio.sleep(1.0)


def engine_of(service: int) -> int:
    """The process of a service's engine, its newest child where no constraint is asked for; 0 where there is none."""
    return max(children_of(service), default=0)


def report(results: dict) -> str:
    rows = [
        [name, str(r["status"]), f"{r['seconds']:.1f}", f"{r['bytes']:,}", f"{r['median_s']:.3f}", f"{r['most_s']:.3f}"]
        for name, r in results["hostile"].items()
    ]
    half = len(results["memory"]) // 2
    late = results["memory"][half:]
    return "\n".join(
        [
            table(["a hostile request", "status", "s", "bytes", "one token beside it, s", "at most"], rows),
            *(f"{part}: {results[part]}" for part in ("together", "a hang", "afterwards", "left")),
            f"memory in the second half: service {min(m[1] for m in late):.0f} to {max(m[1] for m in late):.0f} MB,"
            f" engine up to {max(m[2] for m in late):.0f} MB",
        ]
    )


def draw(memory: list[tuple[float, float, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    seconds, service, engine = zip(*memory)
    axes.plot(seconds, service, label="service")
    axes.plot(seconds, engine, label="engine's process")
    axes.set(xlabel="seconds", ylabel="MB in memory", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    cli.run(main)
