"""The routes, mostly with the small engine of test_async_engine; the door serve.py with a tiny model."""

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from served import begun, command
from test_async_engine import ENCODING, POISON, SCRIPT, FakeEngine, eventually

from gpt2_mlx import checkpoint
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2
from gpt2_mlx.serving import app, schemas
from gpt2_mlx.serving.async_engine import AsyncEngine
from gpt2_mlx.serving.completions import Service
from gpt2_mlx.serving.telemetry import JsonFormatter, Telemetry

ROOT = Path(__file__).parents[1]
SENTENCE, COMPLETIONS = "/complete-sentence", "/v1/completions"
SCRIPT_TEXT = ENCODING.decode(SCRIPT)


class FakeRun:
    """Run's interface, as far as the routes of the API need it."""

    name = "verse"

    def checkpoints(self):
        return {f"step-0000000{i}": Path(f"verse/step-0000000{i}") for i in (1, 2)}


class Client:
    """Sends requests to an app without a network, each in an event loop of its own."""

    def __init__(self, fake: FakeEngine, max_queue: int = 32, load: bool = True, cors: tuple = (), **service):
        self.fake = fake
        self.telemetry = Telemetry()
        self.engine = AsyncEngine(lambda: fake, max_queue, self.telemetry.batch_size.observe)
        self.telemetry.watch(self.engine)
        if load:
            self.engine.start()
            assert self.engine.wait_until_loaded(20)
        self.app = app.build(Service(self.engine, ENCODING, self.telemetry, FakeRun(), **service), cors)

    def request(self, method: str, path: str, **arguments) -> httpx.Response:
        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(send())

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
        self.engine.stop(20)


@pytest.fixture
def open_client():
    with contextlib.ExitStack() as stack:

        def open_client(fake: FakeEngine | None = None, **arguments) -> Client:
            client = Client(fake or FakeEngine(), **arguments)
            if arguments.get("load", True):
                stack.callback(client.close)
            return client

        yield open_client


@pytest.fixture
def client(open_client) -> Client:
    return open_client()


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


# /complete-sentence


def test_a_sentence_begins_with_its_prompt(client):
    answer = client.sentence("Say:", max_tokens=7)
    assert answer["completed_sentence"] == "Say:" + text_of(7)
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}
    assert "completed_sentences" not in answer and "logprobs" not in answer


def test_an_empty_text_is_completed_too(client):
    assert client.sentence("", max_tokens=7)["completed_sentence"] == text_of(7)


def test_samples_have_seeds_of_their_own(client):
    answer = client.sentence(n=3, max_tokens=7)
    assert answer["completed_sentences"] == ["Say:" + text_of(7, seed) for seed in range(3)]
    assert answer["completed_sentence"] == answer["completed_sentences"][0]


def test_without_a_seed_texts_differ(client):
    texts = {client.sentence(max_tokens=3, seed=None)["completed_sentence"] for _ in range(20)}
    assert len(texts) > 1


def test_whole_sentence_ends_at_the_first_end(client):
    answer = client.sentence(whole_sentence=True, max_tokens=60)
    assert answer["completed_sentence"] == "Say:" + SCRIPT_TEXT[: SCRIPT_TEXT.index("?") + 1]
    assert answer["finish_reason"] == "stop"
    second = SCRIPT.index(ENCODING.encode_ordinary("?")[0]) + 1
    answer = client.sentence(whole_sentence=True, max_tokens=60, seed=second)
    assert answer["completed_sentence"] == "Say: It costs 3.14 ducats."


@pytest.mark.parametrize("stop", ["naïve", "ï", "t: “", ["zzz", "?"], "🙂", " "])
def test_stop_strings_are_found_across_tokens_and_kept_out(client, stop):
    answer = client.sentence(stop=stop, max_tokens=40)
    first = stop if isinstance(stop, str) else "?"
    assert answer["completed_sentence"] == "Say:" + SCRIPT_TEXT[: SCRIPT_TEXT.index(first)]
    assert answer["finish_reason"] == "stop"
    eventually(lambda: client.engine.n_running == 0)


def test_a_streamed_sentence_equals_the_unstreamed(client):
    for fields in ({"max_tokens": 45, "n": 3}, {"stop": "naïve"}, {"whole_sentence": True, "max_tokens": 60}):
        *pieces, last = client.events(SENTENCE, {"text": "Say:"} | fields)
        assert last == client.sentence(**fields)
        for index in range(fields.get("n", 1)):
            text = "Say:" + "".join(piece["text"] for piece in pieces if piece["index"] == index)
            assert text == last.get("completed_sentences", [last["completed_sentence"]])[index]
            assert [p["finish_reason"] for p in pieces if p["index"] == index and "finish_reason" in p]


def test_log_probabilities_of_a_sentence(client):
    logprobs = client.sentence(max_tokens=3, logprobs=2)["logprobs"]
    assert logprobs["tokens"] == [ENCODING.decode([id]) for id in SCRIPT[:3]]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert [len(top) for top in logprobs["top_logprobs"]] == [2] * 3
    assert logprobs["text_offset"] == [0, len(text_of(1)), len(text_of(2))]


def test_a_streamed_sentence_tells_each_tokens_log_probability(client):
    fields = {"max_tokens": 20, "n": 2, "logprobs": 2}
    *pieces, last = client.events(SENTENCE, {"text": "Say:"} | fields)
    tokens = [token for piece in pieces if piece["index"] == 0 for token in piece["logprobs"]["tokens"]]
    assert len(tokens) == 20 and tokens == last["logprobs"]["tokens"]
    assert all("logprobs" not in piece for piece in client.events(SENTENCE, {"text": "Say:"})[:-1])


def test_a_request_may_name_a_checkpoint(client):
    assert client.sentence(max_tokens=2)["checkpoint"] == "step-00000001"
    assert client.sentence(max_tokens=2, checkpoint="step-00000002")["checkpoint"] == "step-00000002"
    assert client.completion(max_tokens=2, checkpoint="step-00000002")["system_fingerprint"] == "step-00000002"
    for name in ("step-3", "../verse", "", "x" * 200):
        error = check_error(client.post(SENTENCE, {"text": "a", "checkpoint": name}), 400, "checkpoint")
        assert "allowed: step-00000001, step-00000002" in error["message"]


# /v1/completions


def test_a_completion_has_openais_shape(client):
    answer = client.completion(model="whatever", user="me")
    assert answer["object"] == "text_completion" and answer["model"] == "verse"
    assert answer["id"].startswith("cmpl-") and isinstance(answer["created"], int)
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18}
    (choice,) = answer["choices"]
    expected = {"index": 0, "text": text_of(16), "logprobs": None, "finish_reason": "length", "slides": 0}
    assert choice == expected


def test_several_prompts_and_samples(client):
    ids = ENCODING.encode_ordinary("Say:")
    for prompt in (["Say:", "Say:"], [ids, ids]):
        choices = client.completion(prompt=prompt, n=2, max_tokens=4)["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        assert [choice["text"] for choice in choices] == [text_of(4, seed) for seed in (0, 1, 0, 1)]
    assert client.completion(prompt=ids, echo=True, max_tokens=1)["choices"][0]["text"] == "Say:" + text_of(1)


def test_echo_with_log_probabilities_and_nothing_drawn(client):
    text = "A naïve 🎭 indeed"
    ids = ENCODING.encode_ordinary(text)
    answer = client.completion(prompt=text, echo=True, logprobs=1, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["text"] == text and choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None] + [-0.5] * (len(ids) - 1)
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [len(ENCODING.decode(ids[:i]).rstrip("\ufffd")) for i in range(len(ids))]
    assert [name for name in logprobs["tokens"] if name.startswith("bytes:\\x")]  # the mask is several tokens
    assert answer["usage"]["completion_tokens"] == 0


def test_tokens_that_the_context_does_not_hold_have_no_log_probability(client):
    ids = [1] * 100  # the small engine's context has 64
    logprobs = client.completion(prompt=ids, echo=True, logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == 101
    assert logprobs["token_logprobs"] == [None] * 37 + [-0.5] * 64


def test_log_probabilities_end_where_the_text_does(client):
    choice = client.completion(stop="or not", logprobs=0, max_tokens=30)["choices"][0]
    assert "".join(choice["logprobs"]["tokens"]).startswith(choice["text"])
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 45, "n": 3},
        {"prompt": ["Say:", "Sing"], "echo": True, "logprobs": 2, "max_tokens": 30},
        {"stop": ["naïve", "zz"], "logprobs": 1, "max_tokens": 30},
        {"max_tokens": 0, "echo": True, "logprobs": 0},
    ],
)
def test_a_streamed_completion_equals_the_unstreamed(client, fields):
    body = {"prompt": "Say:", "stream_options": {"include_usage": True}} | fields
    *chunks, last = client.events(COMPLETIONS, body)
    whole = client.completion(**fields)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and chunk["id"] == last["id"] for chunk in chunks)
    for choice in whole["choices"]:
        pieces = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [p["finish_reason"] for p in pieces] == [None] * (len(pieces) - 1) + [choice["finish_reason"]]
        if choice["logprobs"]:
            for name, values in choice["logprobs"].items():
                assert [value for piece in pieces for value in piece["logprobs"][name]] == values


def test_a_stream_without_usage_has_none(client):
    assert all("usage" not in chunk for chunk in client.events(COMPLETIONS, {"prompt": "Say:"}))


# Errors


@pytest.mark.parametrize("path", [SENTENCE, COMPLETIONS])
def test_what_is_no_request_is_refused_and_changes_nothing(client, path):
    headers = {"content-type": "application/json"}
    for body in (b"", b"{", b"[" * 100_000, b'{"text": "\xff"}', b"NaN", b"[]", b"\x00\xff"):
        check_error(client.request("POST", path, content=body, headers=headers), 400)
    name = {SENTENCE: "text", COMPLETIONS: "prompt"}[path]
    check_error(client.post(path, {}), 400, name)
    check_error(client.post(path, {name: "a", "temperature": 1e30}), 400, "temperature")
    not_a_number = b'{"%s": "a", "temperature": NaN}' % name.encode()
    check_error(client.request("POST", path, content=not_a_number, headers=headers), 400, "temperature")
    check_error(client.post(path, {name: "a", "nonsense": 1}), 400, "nonsense")
    for kind in ("text/plain", "multipart/form-data", "application/jsonp"):
        check_error(client.request("POST", path, content=b"{}", headers={"content-type": kind}), 415)
    body = b'{"%s": "a"}' % name.encode()  # as `curl -d` sends it, and as a client that says nothing
    assert client.request(
        "POST", path, content=body, headers={"content-type": "application/x-www-form-urlencoded"}
    ).is_success
    assert client.request("POST", path, content=body).is_success
    check_error(client.post(path, {name: "a" * schemas.MAX_BODY}), 413)
    check_error(client.get(path), 405)
    assert client.post(path, {name: "a"}, headers={"content-type": "application/json; charset=utf-8"}).is_success


def test_unknown_paths_and_methods(client):
    for path in ("/nowhere", "/v1/completions/", "/complete-sentence/x", "//", "/%00%ff"):
        assert check_error(client.get(path), 404)["code"] == "not_found"
    response = client.request("DELETE", SENTENCE)
    assert "POST" in check_error(response, 405)["message"] and response.headers["allow"] == "POST"
    check_error(client.request("POST", "/health"), 405)


def test_a_token_that_the_model_lacks_is_a_bad_request(open_client):
    fake = FakeEngine()
    fake.vocab_size = 10
    check_error(open_client(fake).post(COMPLETIONS, {"prompt": [11]}), 400)


def test_a_step_that_raises_is_a_500_and_the_next_request_is_served(client):
    check_error(client.post(COMPLETIONS, {"prompt": [POISON]}), 500)
    *_, last = client.events(COMPLETIONS, {"prompt": [POISON]})
    assert last["error"]["code"] == "engine_failed" and last["error"]["type"] == "server_error"
    assert client.completion(max_tokens=2)["choices"][0]["text"] == text_of(2)


def test_our_own_mistake_is_a_500_without_a_traceback(client, monkeypatch):
    monkeypatch.setattr(app, "_encode", lambda *_: 1 / 0)
    check_error(client.post(SENTENCE, {"text": "a"}), 500)


def test_a_full_queue_is_a_429_with_retry_after(open_client):
    client = open_client(max_queue=2)
    client.fake.gate.clear()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = [pool.submit(client.sentence) for _ in range(2)]
        eventually(lambda: client.engine.n_waiting == 2)
        check_error(client.get("/ready"), 503)
        for stream in (False, True):
            response = client.post(SENTENCE, {"text": "a", "stream": stream})
            assert check_error(response, 429)["type"] == "rate_limit_error"
            assert int(response.headers["retry-after"]) >= 1
        client.fake.gate.set()
        assert all(future.result(20)["completed_sentence"] == "Say:" + text_of(50) for future in waiting)
    assert client.sentence(max_tokens=2)


def test_while_it_loads_or_drains_it_says_so(open_client):
    client = open_client(load=False)
    assert "loading" in check_error(client.get("/ready"), 503)["message"]
    assert "loading" in check_error(client.post(SENTENCE, {"text": "a"}), 503)["message"]
    assert client.get("/health").status_code == 200
    client = open_client()
    assert client.get("/ready").status_code == 200
    client.engine.drain(20)
    assert "draining" in check_error(client.get("/ready"), 503)["message"]
    assert "draining" in check_error(client.post(COMPLETIONS, {"prompt": "a"}), 503)["message"]


# Keys, origins, metrics, logs


def test_a_key_is_asked_for(open_client):
    client = open_client(api_key="sésame")
    for key in (None, "Bearer", "Bearer x", "sésame", "Basic sésame", "Bearer sésam"):
        headers = {} if key is None else {"authorization": key.encode()}
        for path in (SENTENCE, COMPLETIONS):
            response = client.post(path, {}, headers=headers)
            check_error(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        check_error(client.get("/v1/models", headers=headers), 401)
    right = {"authorization": "Bearer sésame".encode()}
    assert client.get("/v1/models", headers=right).json()["data"][0]["id"] == "verse"
    check_error(client.post(SENTENCE, {}, headers=right), 400, "text")
    assert all(client.get(path).status_code == 200 for path in ("/health", "/ready", "/metrics"))


def test_other_origins_are_answered_only_if_asked(open_client):
    ask = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed, opened = open_client(), open_client(cors=("https://a.example",))
    assert "access-control-allow-origin" not in closed.get("/health", headers=ask).headers
    check_error(closed.request("OPTIONS", SENTENCE, headers=ask), 405)
    assert opened.get("/health", headers=ask).headers["access-control-allow-origin"] == "https://a.example"
    assert opened.request("OPTIONS", SENTENCE, headers=ask).status_code == 200
    other = opened.get("/health", headers=ask | {"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_metrics(client):
    client.sentence(max_tokens=5)
    client.get("/nowhere")
    client.post(SENTENCE, {})
    text = client.get("/metrics").text
    for line in (
        'gpt2_requests_total{route="/complete-sentence",status="200"} 1.0',
        'gpt2_requests_total{route="/complete-sentence",status="400"} 1.0',
        'gpt2_requests_total{route="other",status="404"} 1.0',
        "gpt2_queue_depth 0.0",
        "gpt2_running 0.0",
        "gpt2_prompt_tokens_total 2.0",
        "gpt2_completion_tokens_total 5.0",
        "gpt2_time_to_first_token_seconds_count 1.0",
        "gpt2_time_per_token_seconds_count 4.0",
        "gpt2_batch_size_count 5.0",
    ):
        assert line in text.split("\n"), line


def test_the_request_id_is_in_the_answer_and_in_the_log(client, caplog):
    lines = []
    handler = logging.StreamHandler()
    handler.emit = lambda record: lines.append(json.loads(JsonFormatter().format(record)))
    logger = logging.getLogger("gpt2_mlx.serving.telemetry")
    logger.addHandler(handler)
    with caplog.at_level(logging.INFO):
        response = client.get("/health", headers={"x-request-id": "abc-1"})
        strange = client.get("/no%0Awhere", headers={"x-request-id": "a b\tc"})
    logger.removeHandler(handler)
    assert response.headers["x-request-id"] == "abc-1"
    assert (lines[0]["request_id"], lines[0]["path"], lines[0]["status"]) == ("abc-1", "/health", 200)
    assert lines[1]["request_id"] == strange.headers["x-request-id"] != "a b\tc"
    assert lines[1]["path"] == "/no%0Awhere"


# Over a real connection


@contextlib.contextmanager
def serving(client: Client):
    """The client's app on a loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(client.app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def test_a_client_that_leaves_frees_its_slots(open_client):
    client = open_client(FakeEngine(n_slots=2, seconds=0.005))
    body = {"text": "Say:", "max_tokens": 4096, "n": 2}
    with serving(client) as url:
        with httpx.stream("POST", url + SENTENCE, json=body | {"stream": True}) as response:
            next(response.iter_lines())
        eventually(lambda: sorted(client.fake.cancelled) == [0, 1])
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + SENTENCE, json=body, timeout=httpx.Timeout(20, read=0.2))
        eventually(lambda: sorted(client.fake.cancelled) == [0, 1, 2, 3])
        eventually(lambda: client.engine.n_running == client.engine.n_waiting == 0)
        answer = httpx.post(url + SENTENCE, json={"text": "Say:", "max_tokens": 2, "seed": 0}).json()
        assert answer["completed_sentence"] == "Say:" + text_of(2)


def test_a_body_that_is_far_too_large_is_answered(client):
    with serving(client) as url:
        response = httpx.post(url + SENTENCE, json={"text": "a" * (8 << 20)})
        check_error(response, 413)
        check_error(httpx.post(url + SENTENCE, content=(b"x" * 70_000 for _ in range(40))), 413)


def test_openais_package_works_unchanged(open_client):
    client = open_client(api_key="secret")
    with serving(client) as url, openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=0) as ai:
        assert [model.id for model in ai.models.list()] == ["verse"]
        base = {"model": "verse", "prompt": "Say:", "seed": 0}
        whole = ai.completions.create(**base, max_tokens=30, logprobs=2, echo=True)
        assert whole.choices[0].text == "Say:" + text_of(30)
        assert len(whole.choices[0].logprobs.tokens) == 32
        stream = ai.completions.create(**base, max_tokens=30, stream=True, stream_options={"include_usage": True})
        *chunks, last = stream
        assert "".join(chunk.choices[0].text for chunk in chunks) == text_of(30)
        assert last.usage.completion_tokens == 30
        with pytest.raises(openai.BadRequestError) as caught:
            ai.completions.create(**base, best_of=3)
        assert caught.value.param == "best_of"
        with pytest.raises(openai.APIError, match="engine failed"):
            list(ai.completions.create(model="verse", prompt=[POISON], stream=True))
        with pytest.raises(openai.InternalServerError):
            ai.completions.create(model="verse", prompt=[POISON])
        with pytest.raises(openai.AuthenticationError):
            ai.with_options(api_key="wrong").completions.create(**base)


# serve.py


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("door") / "checkpoints" / "verse"
    checkpoint.save(folder / "step-00000001", GPT2(GPT2Config(block_size=16, n_layer=1, n_head=1, n_embd=8)))
    checkpoint.mark(folder, "latest", folder / "step-00000001")
    return folder


def test_the_door_serves_the_newest_run_and_ends_with_0_when_it_has_drained(tiny_run):
    with begun(tiny_run.parents[1], "--log-format", "json") as (process, url):
        answer = httpx.post(url + SENTENCE, json={"text": "KING RICHARD II:", "seed": 1, "max_tokens": 5}, timeout=30)
        assert answer.json()["completed_sentence"].startswith("KING RICHARD II:")
        assert [model["id"] for model in httpx.get(url + "/v1/models").json()["data"]] == ["verse"]
        body = {"prompt": "KING", "max_tokens": 200, "stream": True, "seed": 1}
        with httpx.stream("POST", url + COMPLETIONS, json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)
        output = process.communicate(timeout=60)[1]
        assert process.returncode == 0, output
        assert all(json.loads(line)["request_id"] for line in output.splitlines())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "there is no run under checkpoints/: train one first with `python train.py`"),
        (("--checkpoint", "nowhere"), "nowhere is neither a checkpoint"),
        (("--port", "70000"), "--port is 70000; it must be at least 0 and at most 65535"),
        (("--max-queue", "0"), "--max-queue is 0; it must be at least 1"),
        (("--quantize", "3"), "invalid choice '3' for argument '--quantize'"),
        (("--api-key", ""), "--api-key is blank"),
        (("--depth", "3"), "Unrecognized options: --depth"),
        (("--checkpoint", "broken"), "model.safetensors"),
    ],
)
def test_a_mistake_at_the_door_is_one_line(tiny_run, tmp_path, flags, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_bytes((tiny_run / "latest" / "config.json").read_bytes())
    done = subprocess.run(command(*flags), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("serve.py: error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
