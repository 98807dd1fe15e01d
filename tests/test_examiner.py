"""Constraints at the door: what is refused, and what hangs or dies does so without harm."""

import asyncio
import concurrent.futures
import json
import subprocess
import sys

import pytest
from client import COMPLETIONS, SENTENCE, Client, check_error, text_of
from fake_engine import FakeEngine
from patience import PATIENCE, eventually

from gpt2_mlx.generation.params import Constraint
from gpt2_mlx.serving import examiner
from gpt2_mlx.serving.limits import MAX_CONSTRAINT_CHARS, MAX_EXAMINED, MAX_EXAMS
from gpt2_mlx.serving.parsing import parse
from gpt2_mlx.serving.schemas import SentenceRequest
from gpt2_mlx.serving.submission import QueueFull

ENDLESS = "((a{100}){100}){100}"  # compiles for minutes
DEEP = "start: r0\n" + "".join(f'r{i}: r{i + 1} "b"\n' for i in range(3500)) + 'r3500: "z"'  # overflows the stack


@pytest.fixture(scope="module")
def client():
    """One for all, since its examiner takes a second to start."""
    client = Client(FakeEngine())
    yield client
    client.close()


def schema_of(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("path", [SENTENCE, COMPLETIONS])
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"structured_outputs": {"regex": "a(b"}}, "structured_outputs.regex", "unclosed group, at character 2"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar", "'x' not found"),
        ({"structured_outputs": {"json": {"type": "int"}}}, "structured_outputs.json", "Invalid type: int"),
        (
            {"response_format": schema_of({"properties": {"a": {"items": {"not": {}}}}})},
            "response_format.json_schema.schema",
            "at /properties/a/items",
        ),
    ],
)
def test_a_bad_constraint_is_a_400_that_says_where(client, path, fields, param, words):
    name = {SENTENCE: "text", COMPLETIONS: "prompt"}[path]
    n_steps = client.fake.n_steps
    for stream in (False, True):
        error = check_error(client.post(path, {name: "Say:", "stream": stream} | fields), 400, param)
        assert words in error["message"] and "\n" not in error["message"]
    assert client.fake.n_steps == n_steps


def test_a_good_one_goes_to_the_engine(client):
    for fields in ({"structured_outputs": {"choice": ["a"]}}, {"response_format": {"type": "json_object"}}):
        assert client.sentence(max_tokens=2, **fields) and client.completion(max_tokens=2, **fields)


@pytest.mark.parametrize(("kind", "content", "words"), [("regex", ENDLESS, "more than"), ("grammar", DEEP, "too deep")])
def test_what_hangs_or_dies_harms_nobody(client, kind, content, words):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = [pool.submit(client.post, SENTENCE, {"text": "a", "structured_outputs": {kind: content}}) for _ in "ab"]
        others = [client.sentence(max_tokens=2) for _ in range(5)]  # answered meanwhile
        answers = [future.result(PATIENCE) for future in asked]
    assert all(words in check_error(answer, 400, f"structured_outputs.{kind}")["message"] for answer in answers)
    assert len(others) == 5
    assert client.sentence(max_tokens=2, structured_outputs={kind: "root ::= [0-9]" if kind == "grammar" else "[0-9]"})


def test_what_cannot_be_followed_further_ends_its_request_and_no_other(client, monkeypatch):
    monkeypatch.setattr(client.fake, "fails_at", 3)
    fields, n_cancelled = (
        {"structured_outputs": {"choice": ["a"]}, "max_tokens": 200, "n": 2},
        len(client.fake.cancelled),
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        other = pool.submit(client.sentence, max_tokens=30)
        assert "cannot be followed" in check_error(client.post(SENTENCE, {"text": "a"} | fields), 400)["message"]
        *pieces, last = client.events(COMPLETIONS, {"prompt": "a"} | fields)
        assert len(pieces) >= 3 and "cannot be followed" in last["error"]["message"]
        assert other.result(PATIENCE)["completed_sentence"] == "Say:" + text_of(30)
    eventually(lambda: len(client.fake.cancelled) > n_cancelled)  # the other of its two texts
    eventually(lambda: client.engine.n_running == client.engine.n_waiting == 0)


def test_a_constraint_is_not_blamed_for_a_death_before_it(client):
    async def wrong():
        examiner = client.service.examiner
        await examiner.examine(Constraint("regex", "c"))
        examiner._process.kill()
        await examiner._process.wait()
        return await examiner.examine(Constraint("regex", "d"))

    assert client.await_(wrong()) is None


def test_what_was_examined_is_known_from_then_on(client, monkeypatch):
    bound = Constraint("regex", "[0-9]{7}")
    for _ in range(2):
        assert client.await_(client.service.examiner.examine(bound)) is None
        monkeypatch.setattr(examiner.Examiner, "_exam", None)


def test_the_exams_that_are_remembered_and_those_that_wait_are_bounded(client):
    async def crowd():
        asked = (client.service.examiner.examine(Constraint("regex", f"a{i}")) for i in range(MAX_EXAMS + 4))
        return await asyncio.gather(*asked, return_exceptions=True)

    wrong = client.await_(crowd())
    assert wrong[:MAX_EXAMS] == [None] * MAX_EXAMS
    assert all(isinstance(each, QueueFull) for each in wrong[MAX_EXAMS:])
    for i in range(MAX_EXAMINED):
        client.await_(client.service.examiner.examine(Constraint("regex", f"b{i}")))
    assert len(client.service.examiner._examined) == MAX_EXAMINED


def test_any_number_may_wait_for_one_exam(client):
    async def crowd():
        asked = (client.service.examiner.examine(Constraint("regex", "(one|for all)")) for _ in range(3 * MAX_EXAMS))
        return await asyncio.gather(*asked)

    assert client.await_(crowd()) == [None] * 3 * MAX_EXAMS


def test_an_exam_has_an_end_however_busy_the_machine_is(client, monkeypatch):
    param = "structured_outputs.regex"
    monkeypatch.setattr(examiner, "EXAM_WAIT", 0.05)
    bound = {"text": "a", "structured_outputs": {"regex": ENDLESS + "x"}}
    assert "did not end within 0.05 s" in check_error(client.post(SENTENCE, bound), 400, param)["message"]
    monkeypatch.undo()
    assert "more than" in check_error(client.post(SENTENCE, bound), 400, param)["message"]  # it was not blamed for good


def test_a_timeout_begins_when_its_request_arrives(client):
    bound, n_begun = {"structured_outputs": {"regex": ENDLESS + "y"}}, len(client.fake.prompts)
    answer = client.completion(timeout=0.05, **bound)
    assert answer["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "timeout",
        "slides": 0,
    }
    assert len(client.fake.prompts) == n_begun  # it got nothing that is not examined
    assert client.completion(timeout=100, structured_outputs={"regex": "z"}, max_tokens=1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not refuse it")
def test_the_memory_of_an_exam_is_bounded():
    code = "from gpt2_mlx.serving.examiner import limit_memory; limit_memory(); bytearray(1 << 20); bytearray(3 << 30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "MemoryError"


def test_the_strings_of_a_choice_are_bounded_together(client):
    half = "a" * (MAX_CONSTRAINT_CHARS // 2)
    body = {"text": "a", "structured_outputs": {"choice": [half, half + "b"]}}
    message = check_error(client.post(SENTENCE, body), 400, "structured_outputs")["message"]
    assert f"the strings of choice have {MAX_CONSTRAINT_CHARS + 1} characters" in message
    assert parse(SentenceRequest, json.dumps(body | {"structured_outputs": {"choice": [half, half]}}).encode())
