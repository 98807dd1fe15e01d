"""/openapi.json is true: to the routes, to the answers, and under a fuzzer's fire."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from client import CHAT, CHATTY, COMPLETIONS, SENTENCE, Client, serving
from fake_engine import FakeEngine
from patience import PATIENCE, eventually
from served import make_run

from gpt2_mlx.serving import answers, chat, docs, limits, openapi, pages, schemas
from gpt2_mlx.serving.served_run import ServedRun

DOCUMENT = openapi.document()
REQUESTS = ((SENTENCE, schemas.SentenceRequest), (COMPLETIONS, schemas.CompletionRequest), (CHAT, chat.ChatRequest))


class BriefEngine(FakeEngine):
    """A small engine that ends every text soon, whatever is asked for."""

    def step(self):
        for job in self.running.values():
            job[2] = max(job[2], job[1].max_tokens - 3)
        return super().step()


@pytest.fixture
def client(tmp_path):
    """An app with its pages, over a real run."""
    run = ServedRun(make_run(tmp_path / "verse"), "mine")
    client = Client(BriefEngine(n_slots=64), run=run, build={"pages": pages.routes()}, vocabulary=CHATTY)
    yield client
    client.close()


def test_every_route_but_the_pages_is_described(client):
    paths = {route.path for route in client.app.routes}
    assert paths - set(DOCUMENT["paths"]) == {"/", "/page.css", "/page.js", "/docs", "/openapi.json"}
    assert set(DOCUMENT["paths"]) <= paths


def test_nulls_are_described_where_they_are_taken():
    for name in ("CompletionRequest", "StreamOptions", "TokenizeRequest"):
        schema = DOCUMENT["components"]["schemas"][name]
        for field in set(schema["properties"]) - set(schema.get("required", ())):
            assert {"type": "null"} in schema["properties"][field]["anyOf"]


@pytest.mark.parametrize("model", [schemas.SentenceRequest, schemas.CompletionRequest, chat.ChatRequest])
def test_every_field_has_its_limits_default_and_reason(model):
    fields = DOCUMENT["components"]["schemas"][model.__name__]["properties"]
    assert set(fields) == set(model.model_fields)
    for name, field in fields.items():
        assert field.get("description") or not model.model_fields[name].is_required(), name
    temperature = fields["temperature"]["anyOf"][0]
    assert (temperature["minimum"], temperature["maximum"]) == (0, limits.MAX_TEMPERATURE)
    assert fields["max_tokens"]["default"] == model.model_fields["max_tokens"].default


@pytest.mark.parametrize("n_vocab", [257, 300, 1024, 50257, 65536])
def test_token_ids_are_described_as_the_served_vocabulary_has_them(n_vocab):
    models = openapi.document(n_vocab)["components"]["schemas"]
    ids = next(kind for kind in models["CompletionRequest"]["properties"]["prompt"]["anyOf"] if "minimum" in str(kind))
    tokens = models["DetokenizeRequest"]["properties"]["tokens"]
    assert ids["items"]["maximum"] == tokens["items"]["maximum"] == n_vocab - 1
    keys = models["CompletionRequest"]["properties"]["logit_bias"]["anyOf"][0]["propertyNames"]["pattern"]
    described = [id for id in range(n_vocab + 1000) if re.match(keys, str(id))]
    assert described == list(range(n_vocab)) and not re.match(keys, "007")
    assert "minimum" not in str(models["TokenizeRequest"])


def test_answers_hold_what_is_described(client):
    for fields in ({}, {"n": 2, "logprobs": 2}):
        answers.SentenceAnswer.model_validate(client.sentence(**fields))
        answers.CompletionAnswer.model_validate(client.completion(**fields))
    for path, model in (("/v1/models", answers.Models), ("/ready", answers.Ready), ("/card", answers.Card)):
        model.model_validate(client.get(path).json())
    answers.TokenizeAnswer.model_validate(client.post("/tokenize", {"prompt": "a"}).json())
    answers.DetokenizeAnswer.model_validate(client.post("/detokenize", {"tokens": [1]}).json())
    answers.Error.model_validate(client.post(SENTENCE, {}).json())


def test_the_page_tells_every_route_and_field():
    page = docs.page(DOCUMENT)
    for path, model in REQUESTS:
        assert f"POST {path}" in page
        assert all(f"<code>{name}</code>" in page for name in model.model_fields)
    assert "http://" not in page and "https://" not in page


def test_a_fuzzer_finds_no_answer_that_is_not_described(client, tmp_path):
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with serving(client) as url:
        words = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
        words += ["--checks", checks, "--max-examples", "25", "--seed", "1", "--phases", "fuzzing"]
        words += ["--request-timeout", str(PATIENCE), "--suppress-health-check", "too_slow"]
        done = subprocess.run([*words, "--no-color"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    eventually(lambda: client.engine.n_running == client.engine.n_waiting == 0)
