"""Four promises of the service, each tried for long: audits, superseding, JSON, and prefixes that change no text.

Each trial returns what it counted, broken promises in capitals.
"""

import asyncio
import json
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path

import httpx
import jsonschema

from gpt2_mlx.generation.scheduler import CHUNK
from gpt2_mlx.serving.limits import MAX_AUDITS

from .processes import processor_seconds
from .servers import Server, running
from .soak_requests import CUT_OFF, SCHEMAS, Offer, texts_of
from .weights import save_adapter

PATIENCE = 120.0  # seconds without news


async def audits(model: Path, n_clients: int, n_requests: int) -> dict:
    """Clients ask for anything that is offered, two adapters too, and every answer is audited.

    For half of the requests the text drafts for itself, for the others a model, which is the served one.
    """
    counts, pick = Counter(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        adapters = [save_adapter(model, Path(folder) / f"rank-{rank}", rank) for rank in (4, 8)]
        flags = [part for path in adapters for part in ("--adapter", f"{path.name}={path}")]
        for drafts in ((), ("--speculate", "3", "--draft-model", str(model))):
            async with served(model, "--audit", "1", *flags, *drafts) as (http, server):
                await _audited(http, n_clients, n_requests // 2, pick, counts)
                told = [line for line in server.log.read_text().splitlines() if "an audit found a difference" in line]
                print(*told, sep="\n", end="\n" if told else "")
    return {name: n for name, n in counts.items() if n or name.islower()}


async def _audited(http: httpx.AsyncClient, n_clients: int, n: int, pick: random.Random, counts: Counter) -> None:
    """Ask for n texts in waves of as many as are kept for an audit, since one waits until nobody asks."""
    offer = await Offer.of(http)
    told, answered = await metrics(http), re.compile(r'gpt2_requests_total.*"/v1/c.*"200"')
    n_whole = sum(n for name, n in told.items() if answered.match(name))  # what came before is audited, too

    async def ask(_: int) -> None:
        nonlocal n_whole
        route, body = offer.any_request(pick)
        try:
            texts = await texts_of(http, route, body)
        except (ValueError, httpx.HTTPError) as error:
            counts["FAILED"] += 1
            print(f"failed: {error}")
            return
        reasons = {text["finish_reason"] for text in texts}
        counts.update([*reasons, route, body.get("model", "no model named"), "answers"])
        n_whole += not reasons & CUT_OFF

    async def audited() -> dict[str, float]:
        return await until(http, lambda told: told["gpt2_audits_total"] + told["gpt2_audits_dropped_total"] >= n_whole)

    await audited()
    for begin in range(0, n, MAX_AUDITS):
        await at_once(n_clients, ask, range(begin, min(begin + MAX_AUDITS, n)))
        told = await audited()
    counts["DIFFERING"] += int(told["gpt2_audits_differing_total"])
    counts["NOT AUDITED"] += int(n_whole - told["gpt2_audits_total"])
    counts["blocks found in the prefix cache"] += int(told["gpt2_prefix_cache_hits_total"])
    for name in ("audits", "audits_dropped", "engine_restarts", "drafted_tokens", "accepted_tokens"):
        counts[name] += int(told[f"gpt2_{name}_total"])


async def superseding(model: Path, seconds: float, rate: float = 10.0) -> dict:
    """One who types: a request so many times a second, each of which supersedes the one before."""
    counts, longest, bodies = Counter(), Counter(), []
    for i in range(4):
        bodies.append({"prompt": "ROMEO:\nBut soft"[: 9 + i], "max_tokens": 400, "seed": i, "stream": i % 2 == 0})
    async with served(model) as (http, _):
        expected = [await texts_of(http, "/v1/completions", body) for body in bodies]

        async def ask(i: int) -> bool:
            """Whether the answer is whole and right."""
            asked = bodies[i % len(bodies)] | {"supersede": "a typist"}
            (text,), (right,) = await texts_of(http, "/v1/completions", asked), expected[i % len(bodies)]
            counts[text["finish_reason"]] += 1
            is_right = text["text"] == right["text"]
            if not (is_right if text["finish_reason"] != "superseded" else right["text"].startswith(text["text"])):
                counts["DIFFERENT"] += 1
            return is_right and text["finish_reason"] == right["finish_reason"]

        began, asking = time.monotonic(), []
        for i in range(round(seconds * rate)):
            await asyncio.sleep(began + i / rate - time.monotonic())
            asking.append(asyncio.create_task(ask(i)))
            told = await metrics(http)
            for name in ("gpt2_queue_depth", "gpt2_running"):
                longest[name] = max(longest[name], int(told[name]))
        *_, last = await asyncio.gather(*asking)
        told = await until(http, lambda told: not (told["gpt2_queue_depth"] or told["gpt2_running"]))
    if not last:
        counts["LAST NOT ANSWERED"] = 1
    if left := told["gpt2_queue_depth"] + told["gpt2_running"]:
        counts["LEFT"] = int(left)
    at_most = {"waiting at most": longest["gpt2_queue_depth"], "running at most": longest["gpt2_running"]}
    return {**counts, **at_most, "requests a second": round(len(asking) / (time.monotonic() - began), 1)}


async def schemas(model: Path, n_requests: int, rounds: int, n_clients: int = 16) -> dict:
    """JSON of schemas, sampled, all of it valid; and the same load without a constraint beside it, in turns."""
    counts, measured, texts = Counter(), {"with": [], "without": []}, {}
    async with served(model) as (http, server):

        async def ask(body: dict) -> tuple[str, int]:
            (text,) = await texts_of(http, "/v1/completions", body)
            return text["text"], text["tokens"]

        async def bound(i: int) -> int:
            schema = SCHEMAS[i % len(SCHEMAS)]
            asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
            texts[i], n_tokens = await ask(_asking_for_json(i) | asked)
            return n_tokens

        async def measure(kind: str, ask_one: Callable[[int], Awaitable[int]]) -> list[int]:
            processor, began = processor_seconds(server.pid), time.monotonic()
            tokens = await at_once(n_clients, ask_one, range(n_requests))
            rates = [sum(tokens) / s for s in (processor_seconds(server.pid) - processor, time.monotonic() - began)]
            measured[kind].append(rates)
            return tokens

        await at_once(1, bound, range(len(SCHEMAS)))  # compiles each
        for _ in range(rounds):
            tokens = await measure("with", bound)
            valid = (is_valid(text, SCHEMAS[i % len(SCHEMAS)]) for i, text in texts.items())
            counts.update("valid" if each else "INVALID" for each in valid)

            async def free(i: int) -> int:
                body = _asking_for_json(i) | {"max_tokens": tokens[i]}  # noqa: B023
                return (await ask(body))[1]

            await measure("without", free)
    rates = {}
    for number, name in enumerate(("a processor's second", "second")):
        bound_rate, free_rate = (statistics.median(rates[number] for rates in measured[kind]) for kind in measured)
        rates[f"tokens per {name}"] = [round(bound_rate), round(free_rate)]
        rates[f"lost by {name}"] = f"{1 - bound_rate / free_rate:.1%}"
    return {**counts, **rates}


def _asking_for_json(i: int) -> dict:
    return {"prompt": f"A king in JSON, number {i}: ", "max_tokens": 400, "temperature": 1.0, "seed": i}


def is_valid(text: str, schema: dict) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError) as error:
        print(f"invalid: {error}: {text[:300]!r}")
        return False
    return True


async def prefixes(model: Path, n_requests: int, n_at_once: int = 16) -> dict:
    """A crowd whose prompts begin alike gets the same texts and numbers with the cache off, on, and full all the time.

    What is right is told by a server without it that runs one text at a time.
    """
    counts, hits = Counter(), {}

    async def told(*flags: str, n_clients: int) -> list:
        async with served(model, *flags) as (http, _):
            bodies = (await Offer.of(http)).conversations(n_requests, random.Random(4))
            texts = await at_once(n_clients, lambda i: texts_of(http, "/v1/completions", bodies[i]), range(n_requests))
            hits[" ".join(flags)] = int((await metrics(http))["gpt2_prefix_cache_hits_total"])
            return [[(text["text"], text["logprobs"], text["finish_reason"]) for text in each] for each in texts]

    async with served(model) as (http, _):
        card = (await Offer.of(http)).card
    a_block = ceil(2 * card["n_layer"] * card["n_embd"] * CHUNK * 4 / 1e6)  # MB
    right = await told("--prefix-cache-mb", "0", "--max-batch-size", "1", n_clients=1)
    for flags in (("--prefix-cache-mb", "0"), ("--prefix-cache-mb", str(a_block)), ()):
        texts = await told(*flags, n_clients=n_at_once)
        counts["equal"] += sum(map(list.__eq__, texts, right))
        counts["DIFFERENT"] += sum(map(list.__ne__, texts, right))
    return {**+counts, "blocks found": {flags or "default": n for flags, n in hits.items()}}


@asynccontextmanager
async def served(model: Path, *flags: str) -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    with running("gpt2_mlx", model, "cpu", *flags) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
            yield http, server


async def at_once(n_at_once: int, work: Callable[[int], Awaitable], numbers: Iterable[int]) -> list:
    """What the work gives for each number, so many at once."""
    results, left = {}, iter(numbers)

    async def some() -> None:
        for number in left:
            results[number] = await work(number)

    await asyncio.gather(*(some() for _ in range(n_at_once)))
    return [results[number] for number in sorted(results)]


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    """The numbers of /metrics, by name and labels."""
    lines = [line for line in (await http.get("/metrics")).text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in map(str.split, lines)}


async def until(http: httpx.AsyncClient, holds: Callable[[dict], bool]) -> dict[str, float]:
    """The metrics once they are as they should be, or once nothing has changed for long."""
    told, since = await metrics(http), time.monotonic()
    while not holds(told) and time.monotonic() - since < PATIENCE:
        await asyncio.sleep(0.1)
        now = await metrics(http)
        if now["gpt2_audits_total"] != told["gpt2_audits_total"]:
            since = time.monotonic()
        told = now
    return told
