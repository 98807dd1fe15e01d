"""The app with the small engine, and what sends requests to it."""

import asyncio
import contextlib
import dataclasses
import json
import re
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path

import httpx
import uvicorn
from fake_engine import ENCODING, SCRIPT, FakeEngine, ThreadProcess
from patience import PATIENCE, eventually

from gpt2_mlx import template, tokenizer
from gpt2_mlx.serving import app
from gpt2_mlx.serving.async_engine import AsyncEngine
from gpt2_mlx.serving.service import Service
from gpt2_mlx.serving.telemetry import Telemetry

SENTENCE, COMPLETIONS, CHAT = "/complete-sentence", "/v1/completions", "/v1/chat/completions"
HOST = "127.0.0.1"
VOCABULARY = tokenizer.gpt2()
CHATTY = dataclasses.replace(VOCABULARY, template=template.OURS)


class FakeRun:
    """ServedRun's interface, as far as the routes of the API need it."""

    name, block_size = "verse", FakeEngine.block_size

    def checkpoints(self):
        return {f"step-0000000{i}": Path(f"verse/step-0000000{i}") for i in (1, 2)}


class Client:
    """Sends requests to an app without a network. App and engine live in an event loop in a thread of its own."""

    def __init__(
        self, fake: FakeEngine, max_queue: int = 32, load: bool = True, run=None, build=None, vocabulary=None, **service
    ):
        self.fake = fake
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.telemetry = Telemetry()
        self.engine = AsyncEngine(lambda checkpoint: ThreadProcess(fake), fake.checkpoint, max_queue)
        self.telemetry.watch(self.engine)
        if load:
            self.call(self.engine.start)
            eventually(lambda: not self.engine.closed)
        self.service = Service(self.engine, vocabulary or VOCABULARY, self.telemetry, run or FakeRun(), **service)
        self.app = app.build(self.service, **({"host": HOST} | (build or {})))

    def await_(self, work: Coroutine):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def call(self, function, *arguments):
        """Call a function in the event loop."""

        async def call():
            return function(*arguments)

        return self.await_(call())

    def request(self, method: str, path: str, **arguments) -> httpx.Response:
        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **arguments)

        return self.await_(send())

    def get(self, path: str, **arguments) -> httpx.Response:
        return self.request("GET", path, **arguments)

    def post(self, path: str, body: dict, **arguments) -> httpx.Response:
        return self.request("POST", path, json=body, **arguments)

    def sentence(self, text: str = "Say:", **fields) -> dict:
        response = self.post(SENTENCE, {"text": text, "seed": 0} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    def completion(self, **fields) -> dict:
        response = self.post(COMPLETIONS, {"prompt": "Say:", "seed": 0} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str, body: dict) -> list[dict]:
        """The events of a stream, less the [DONE] at its end."""
        response = self.post(path, {"seed": 0, "stream": True} | body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        return [json.loads(event) for event in data]

    def close(self) -> None:
        self.fake.gate.set()
        self.await_(self.service.examiner.stop())
        self.await_(self.engine.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)


@contextlib.contextmanager
def serving(client: Client, **settings):
    """The client's app on a loopback port."""
    with socket.create_server((HOST, 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(client.app, log_level="warning", lifespan="off", **settings))
        done = asyncio.run_coroutine_threadsafe(server.serve(sockets=[listener]), client.loop)
        try:
            eventually(lambda: server.started)
            yield f"http://{HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            done.result(PATIENCE)


def text_of(n: int, seed: int = 0) -> str:
    """What the small engine's first n tokens say."""
    return ENCODING.decode([SCRIPT[(seed + i) % len(SCRIPT)] for i in range(n)])


def check_error(response: httpx.Response, status: int, param: str | None = None) -> dict:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] and error["param"] == param
    assert "Traceback" not in response.text
    assert re.fullmatch(r"[A-Za-z0-9._-]+", response.headers["x-request-id"])
    return error
