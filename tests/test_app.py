"""What the routes refuse, and how the server is operated."""

import concurrent.futures
import contextlib
import json
import logging
from http.client import HTTPConnection

import openai
import pytest
from client import COMPLETIONS, SENTENCE, check_error, serving, text_of
from fake_engine import POISON, FakeEngine
from patience import PATIENCE, eventually
from served import http

from gpt2_mlx.generation.prefixes import PrefixCounts
from gpt2_mlx.serving import app
from gpt2_mlx.serving.config import ServeConfig
from gpt2_mlx.serving.limits import MAX_BODY
from gpt2_mlx.serving.telemetry import JsonFormatter

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
    check_error(client.post(path, {name: "a" * MAX_BODY}), 413)
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


def test_what_would_become_too_large_an_answer_is_refused_before_anything_is_computed(client):
    big = {"prompt": [220] * 100_000, "max_tokens": 0, "n": 16}
    for fields, param in [
        ({"echo": True, "n": 64}, "echo"),
        ({"echo": True, "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "max_tokens": 4096, "n": 64, "logprobs": 1}, "logprobs"),
    ]:
        check_error(client.post(COMPLETIONS, big | fields), 400, param)
    assert client.fake.n_steps == 0


def test_only_what_the_model_can_see_of_a_prompt_goes_to_the_engine(client):
    client.fake.gate.clear()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        prompt = list(range(1, 5000))
        asked = pool.submit(client.completion, prompt=prompt, n=3, max_tokens=1)
        eventually(lambda: client.fake.waiting)
        client.fake.gate.set()
        assert asked.result(PATIENCE)["usage"]["prompt_tokens"] == 4999
    assert [len(prompt) for prompt in client.fake.prompts] == [64] * 3


def test_the_numbers_of_a_prompt_are_asked_for_once(client):
    answer = client.completion(prompt=["Say:", "Sing"], n=3, echo=True, logprobs=1, max_tokens=2)
    assert client.fake.noted == 2
    tokens = [choice["logprobs"]["tokens"] for choice in answer["choices"]]
    assert [t[0] for t in tokens] == ["Say"] * 3 + ["Sing"] * 3
    assert all(len(choice["logprobs"]["token_logprobs"]) == len(t) for choice, t in zip(answer["choices"], tokens))


def test_white_space_at_the_end_of_a_key_is_none_of_it():
    assert ServeConfig(api_key="secret\n").api_key == "secret"
    with pytest.raises(ValueError, match="--api-key is blank"):
        ServeConfig(api_key=" \n")


def test_a_step_that_raises_is_a_500_and_the_next_request_is_served(client):
    check_error(client.post(COMPLETIONS, {"prompt": [POISON]}), 500)
    *_, last = client.events(COMPLETIONS, {"prompt": [POISON]})
    assert last["error"]["code"] == "engine_failed" and last["error"]["type"] == "server_error"
    assert client.completion(max_tokens=2)["choices"][0]["text"] == text_of(2)


def test_our_own_mistake_is_a_500_without_a_traceback(client, monkeypatch):
    monkeypatch.setattr(app, "Generation", lambda *_: 1 / 0)
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
        assert all(future.result(PATIENCE)["completed_sentence"] == "Say:" + text_of(50) for future in waiting)
    assert client.sentence(max_tokens=2)


def test_while_it_loads_or_drains_it_says_so(open_client):
    client = open_client(load=False)
    assert "loading" in check_error(client.get("/ready"), 503)["message"]
    assert "loading" in check_error(client.post(SENTENCE, {"text": "a"}), 503)["message"]
    assert client.get("/health").status_code == 200
    client = open_client()
    assert client.get("/ready").status_code == 200
    client.call(client.engine.drain, PATIENCE)
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
    closed, opened = open_client(), open_client(build={"cors_origins": ("https://a.example",)})
    check_error(closed.get("/health", headers=ask), 403)
    check_error(closed.request("OPTIONS", SENTENCE, headers=ask), 403)
    assert opened.get("/health", headers=ask).headers["access-control-allow-origin"] == "https://a.example"
    assert opened.request("OPTIONS", SENTENCE, headers=ask).status_code == 200
    check_error(opened.get("/health", headers=ask | {"origin": "https://b.example"}), 403)


def test_metrics_of_the_prefix_cache(client):
    for hits in (3, 0, 4):
        client.fake.prefix_counts = PrefixCounts(hits, 2, 1000 + hits)
        client.sentence(max_tokens=1)
    text = client.get("/metrics").text
    for line in ("hits_total 7.0", "misses_total 6.0", "bytes 1004.0"):
        assert f"gpt2_prefix_cache_{line}" in text


def test_drafts_are_counted_in_metrics_and_usage(client):
    client.fake.drafted, client.fake.accepted = 3, 1
    usages = [client.sentence(max_tokens=4)["usage"], client.completion(max_tokens=2, n=2)["usage"]]
    assert [usage["completion_tokens_details"] for usage in usages] == [
        {"accepted_prediction_tokens": 4, "rejected_prediction_tokens": 8},
        {"accepted_prediction_tokens": 4, "rejected_prediction_tokens": 8},
    ]
    text = client.get("/metrics").text
    assert "gpt2_drafted_tokens_total 24.0" in text and "gpt2_accepted_tokens_total 8.0" in text


def test_metrics(client):
    client.sentence(max_tokens=5)
    client.get("/nowhere")
    client.post(SENTENCE, {})
    eventually(lambda: client.engine.n_running == 0)
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


def test_a_client_that_leaves_frees_its_slots(open_client):
    client = open_client(FakeEngine(n_slots=2, seconds=0.005))
    body = {"text": "Say:", "max_tokens": 4096, "n": 2}
    with serving(client) as url:
        with http.stream("POST", url + SENTENCE, json=body | {"stream": True}) as response:
            next(response.iter_lines())
        eventually(lambda: sorted(client.fake.cancelled) == [1, 2])
        with contextlib.closing(HTTPConnection(url.removeprefix("http://"))) as connection:
            connection.request("POST", SENTENCE, json.dumps(body))
            eventually(lambda: sorted(client.fake.running) == [3, 4])
        eventually(lambda: sorted(client.fake.cancelled) == [1, 2, 3, 4])
        eventually(lambda: client.engine.n_running == client.engine.n_waiting == 0)
        answer = http.post(url + SENTENCE, json={"text": "Say:", "max_tokens": 2, "seed": 0}).json()
        assert answer["completed_sentence"] == "Say:" + text_of(2)


def test_a_body_that_is_far_too_large_is_answered(client):
    with serving(client) as url:
        check_error(http.post(url + SENTENCE, json={"text": "a" * (8 << 20)}), 413)
        check_error(http.post(url + SENTENCE, content=(b"x" * 70_000 for _ in range(40))), 413)


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
