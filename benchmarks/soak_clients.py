"""The clients of the soak: good, malformed, leaving, slow and half-open ones."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter

import httpx

PROMPTS = ["KING", "The quick brown fox", "ROMEO:\nBut soft", "To be, or not to be. " * 8, "a"]
BAD_BODIES = [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"text": "' + b"x" * 2_000_000 + b'"}'),
    *(b'{"text": 5}', b'{"text": "a", "n": 1e9}', b'{"text": "a", "temperature": NaN}', b'{"prompt": [99999]}'),
    *(b'{"text": "a", "stop": [""]}', b'{"text": "a", "nonsense": 1}', b'{"text": "\\ud800", "seed": -1}'),
]
# What one request can ask for at most, of each thing that multiplies.
HOSTILE = {
    "dots that may yet stop": {
        "prompt": "a",
        "max_tokens": 4096,
        "n": 32,
        "logit_bias": {"13": 100},
        "stop": ["." * 255 + end for end in "abcd"],
    },
    "echo times n": {"prompt": [220] * 170_000, "echo": True, "logprobs": 0, "n": 16, "max_tokens": 0},
    "long tokens times n": {"prompt": [30210] * 170_000, "echo": True, "n": 64, "max_tokens": 1},
    "a long prompt times n": {"prompt": [220] * 16_000, "n": 64, "max_tokens": 1},
    "64 prompts times 2": {"prompt": ["a b c"] * 64, "n": 2, "max_tokens": 200},
    "64 long prompts": {"prompt": ["word " * 1000] * 64, "max_tokens": 20},
}


def requests(n: int, pick: random.Random) -> list[dict]:
    """Seeded requests."""
    return [
        {"prompt": pick.choice(PROMPTS), "seed": i, "max_tokens": pick.choice([5, 40, 150]), "temperature": 1.2}
        | ({"min_p": 0.02} if i % 3 == 0 else {"top_k": 20})
        for i in range(n)
    ]


class Clients:
    """Each method is one client that comes once; `counts` tells what became of them, broken promises in capitals.

    Args:
        http: leads to the server.
        bodies: the requests of good clients, whose texts are in `expected` once they are known.
        pick: what the clients do follows from it.
    """

    def __init__(self, http: httpx.AsyncClient, bodies: list[dict], pick: random.Random):
        self.http, self.bodies, self.pick = http, bodies, pick
        self.expected: list[str] = []
        self.counts: Counter = Counter()
        self.longest_pause = 0.0  # seconds between two events of a stream

    async def text(self, body: dict) -> str:
        """A streamed completion. Raises a ValueError where it fails."""
        text, last = "", None
        async with self.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            if response.status_code != 200:
                raise ValueError(f"{response.status_code} {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return text
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ValueError(event["error"]["message"])
                    text += event["choices"][0]["text"]
                    now = time.monotonic()
                    self.longest_pause, last = max(self.longest_pause, now - (last or now)), now
        raise ValueError("the stream was cut off")

    async def good(self) -> None:
        i = self.pick.randrange(len(self.bodies))
        try:
            self.counts["equal" if await self.text(self.bodies[i]) == self.expected[i] else "DIFFERENT"] += 1
        except (ValueError, httpx.HTTPError) as error:
            self.counts["FAILED"] += 1
            print(f"failed: {error!r}")

    async def one_of_a_crowd(self) -> None:
        """Comes again where it is told to."""
        i = self.pick.randrange(len(self.bodies))
        try:
            while (response := await self.http.post("/v1/completions", json=self.bodies[i])).status_code == 429:
                self.counts["told to come again"] += 1
                await asyncio.sleep(float(response.headers["retry-after"]) * self.pick.uniform(1, 3))
            is_right = response.status_code == 200 and response.json()["choices"][0]["text"] == self.expected[i]
            self.counts["equal" if is_right else "DIFFERENT"] += 1
        except httpx.HTTPError as error:
            self.counts["CUT OFF"] += 1
            print(f"cut off: {error!r}")

    async def leaving(self) -> None:
        with contextlib.suppress(ValueError, httpx.HTTPError, asyncio.TimeoutError):
            await asyncio.wait_for(self.text(self.pick.choice(self.bodies)), self.pick.uniform(0, 0.5))
        self.counts["left"] += 1

    async def malformed(self) -> None:
        i = self.counts["malformed"]
        self.counts["malformed"] += 1
        headers = {"content-type": "text/plain" if i % 5 == 0 else "application/json"}
        headers |= {"origin": "http://evil.example"} if i % 7 == 0 else {}
        route, content = ("/complete-sentence", "/v1/completions")[i % 2], BAD_BODIES[i % len(BAD_BODIES)]
        response = await self.http.post(route, content=content, headers=headers)
        if not (400 <= response.status_code < 500 and "error" in response.json()):
            self.counts["NOT REFUSED"] += 1

    async def half_open(self) -> None:
        begun = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le"
        reader, writer = await self._connect(begun[: self.pick.randrange(len(begun))])
        with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(), self.pick.uniform(1, 10))
        writer.close()
        self.counts["half-open"] += 1

    async def slow(self) -> None:
        """Asks for a stream and takes it a few bytes at a time."""
        body = json.dumps(self.pick.choice(self.bodies) | {"stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        reader, writer = await self._connect(head % len(body) + body)
        with contextlib.suppress(ConnectionError):
            while await reader.read(256):
                await asyncio.sleep(0.01)
        writer.close()
        self.counts["slow"] += 1

    async def _connect(self, begun: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.http.base_url.host, self.http.base_url.port, limit=256)
        writer.write(begun)
        return reader, writer

    async def bystander(self, until) -> list[float]:
        """The seconds that one-token requests take while something else goes on."""
        times = []
        while not until():
            began = time.monotonic()
            body = {"prompt": "a", "max_tokens": 1, "seed": 0}
            (await self.http.post("/v1/completions", json=body)).raise_for_status()
            times.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
        return times
