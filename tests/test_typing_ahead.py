"""Requests that end early: those that a later one supersedes, and those whose time is over."""

import asyncio

import httpx
import pytest
from client import COMPLETIONS, SENTENCE, check_error, text_of
from fake_engine import FakeEngine
from patience import PATIENCE, eventually
from test_async_engine import ids_of, job, running, script, until

from gpt2_mlx.generation.outputs import Output, Token
from gpt2_mlx.serving.choice import Choice, EncodedPrompt
from gpt2_mlx.serving.schemas import CompletionRequest
from gpt2_mlx.serving.submission import QueueFull


@pytest.fixture
def fake():
    return FakeEngine()


def run(fake, test):
    async def main():
        async with running(fake) as engine:
            return await asyncio.wait_for(test(engine), PATIENCE)

    return asyncio.run(main())


async def whole(submission) -> list[tuple[list[int], str]]:
    """The tokens and the finish_reason of each job."""
    ids, reasons = {n: [] for n in range(len(submission.jobs))}, {}
    with submission:
        async for number, output in submission:
            ids[number] += [token.id for token in output.tokens]
            reasons[number] = output.finish_reason
    return [(ids[number], reasons[number]) for number in ids]


def test_of_ten_requests_with_one_key_the_last_is_answered(fake):
    async def test(engine):
        fake.gate.clear()
        asked, waiting = [], []
        for seed in range(10):
            asked.append(engine.submit([job(4, seed), job(4, seed + 1)], key="a"))
            waiting.append(engine.n_waiting)
        assert waiting == [2] * 10
        other = engine.submit([job(3)], key="b")
        fake.gate.set()
        answers = await asyncio.gather(*map(whole, [*asked, other]))
        assert answers[:9] == [[([], "superseded")] * 2] * 9
        assert answers[9:] == [[(script(9, 4), "length"), (script(10, 4), "length")], [(script(0, 3), "length")]]
        await until(lambda: engine.n_running == engine.n_waiting == 0 and not fake.has_work)
        assert fake.cancelled == list(range(1, 19))

    run(fake, test)


def test_what_a_superseded_text_has_got_it_keeps(fake):
    async def test(engine):
        first = engine.submit([job(10**6), job(10**6, 1)], key="a")
        got = [await anext(first) for _ in range(6)]
        fake.gate.clear()
        second = engine.submit([job(2)], key="a")
        fake.gate.set()
        rest = await whole(first)
        for number in range(2):
            ids = [token.id for n, output in got if n == number for token in output.tokens] + rest[number][0]
            assert ids == script(number, len(ids)) and len(ids) >= 1 and rest[number][1] == "superseded"
        assert await whole(second) == [(script(0, 2), "length")]
        await until(lambda: engine.n_running == engine.n_waiting == 0 and not fake.has_work)

    run(fake, test)


def test_a_request_that_was_overtaken_does_not_supersede(fake):
    async def test(engine):
        numbers = [engine.next_number() for _ in range(2)]
        fake.gate.clear()
        later = engine.submit([job(3)], number=numbers[1], key="a")
        earlier = engine.submit([job(3)], number=numbers[0], key="a")
        assert engine.n_waiting == 1
        fake.gate.set()
        assert await whole(earlier) == [([], "superseded")]
        assert await whole(later) == [(script(0, 3), "length")]

    run(fake, test)


def test_in_a_full_queue_a_request_takes_the_place_of_the_one_before(fake):
    async def test(engine):
        fake.gate.clear()
        others = [engine.submit([job(2)]) for _ in range(7)]
        first = engine.submit([job(2)], key="a")
        with pytest.raises(QueueFull):
            engine.submit([job(2)], key="b")
        second = engine.submit([job(2)], key="a")
        fake.gate.set()
        assert await whole(first) == [([], "superseded")]
        assert [await whole(s) for s in (*others, second)] == [[(script(0, 2), "length")]] * 8

    run(fake, test)


def test_time_ends_a_text_where_it_is_queued_or_not(fake):
    async def test(engine):
        endless = engine.submit([job(10**9), job(10**9, 1)], timeout=0.1)
        in_time = engine.submit([job(3)], timeout=PATIENCE)
        assert await whole(in_time) == [(script(0, 3), "length")] and in_time.deadline.cancelled()
        answers = await whole(endless)
        assert answers == [(script(seed, len(ids)), "timeout") for seed, (ids, _) in enumerate(answers)]
        await until(lambda: engine.n_running == engine.n_waiting == 0 and not fake.has_work)
        fake.gate.clear()
        queued = engine.submit([job(3)], timeout=0.01)
        assert await whole(queued) == [([], "timeout")]
        assert engine.n_waiting == 0

    run(fake, test)


def test_an_ended_text_is_drawn_by_no_later_process(fake):
    async def test(engine):
        first = engine.submit([job(10**6)], key="a")
        await anext(first)
        fake.gate.clear()
        second = engine.submit([job(5)], key="a")
        fake.killed.set()
        await until(lambda: fake.begun == 2)
        fake.gate.set()
        assert (await whole(first))[0][1] == "superseded"
        assert await ids_of(second) == {0: script(0, 5)}
        assert len(fake.prompts) <= 3

    run(fake, test)


def post_all(client, bodies: list[tuple[str, dict]]) -> list[httpx.Response]:
    """Send requests in this order, all at once, and let the engine work when they are there."""

    async def send():
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asked = [asyncio.ensure_future(http.post(path, json=body)) for path, body in bodies]
            await until(lambda: sum(task.done() for task in asked) == len(asked) - 1)
            assert client.engine.n_waiting <= 2
            client.fake.gate.set()
            return [await task for task in asked]

    client.fake.gate.clear()
    return client.await_(send())


def test_over_http_the_last_of_ten_is_answered_whole(client):
    bodies = [(SENTENCE, {"text": "Say:", "max_tokens": 4, "seed": seed, "supersede": "me"}) for seed in range(10)]
    bodies[3] = (COMPLETIONS, {"prompt": "Say:", "n": 2, "echo": True, "logprobs": 1, "supersede": "me"})
    *earlier, last = [response.json() for response in post_all(client, bodies)]
    assert last["completed_sentence"] == "Say:" + text_of(4, 9) and last["finish_reason"] == "length"
    choices = earlier.pop(3)["choices"]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("Say:", "superseded")] * 2
    assert {(a["completed_sentence"], a["finish_reason"]) for a in earlier} == {("Say:", "superseded")}
    eventually(lambda: client.engine.n_running == client.engine.n_waiting == 0 and not client.fake.has_work)


@pytest.mark.parametrize("stream", [False, True])
def test_over_http_time_ends_a_text_in_the_queue(client, stream):
    client.fake.gate.clear()
    fields = {"n": 3, "timeout": 0.01}
    if stream:
        *pieces, last = client.events(SENTENCE, {"text": "Say:"} | fields)
        assert [(piece["text"], piece["finish_reason"]) for piece in pieces] == [("", "timeout")] * 3
        choices = [event["choices"][0] for event in client.events(COMPLETIONS, {"prompt": "Say:"} | fields)]
    else:
        last, choices = client.sentence(**fields), client.completion(**fields)["choices"]
    assert last["completed_sentences"] == ["Say:"] * 3 and last["finish_reason"] == "timeout"
    assert last["usage"]["completion_tokens"] == 0
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("", "timeout")] * 3
    client.fake.gate.set()


def test_a_text_that_is_ended_tells_all_that_came(client):
    encoding = client.service.encoding
    request = CompletionRequest(prompt="Say:", stop=" to be", logprobs=0)  # " to" is held back
    choice = Choice(0, EncodedPrompt.of("Say:", client.service.vocabulary, 64, echo=False), request, encoding)
    for id in encoding.encode_ordinary("Not to"):
        choice.take(Output(7, (Token(id, -1.0),), slides=2))
    choice.take(Output(7, (), finish_reason="timeout", slides=2))
    told = choice.whole
    assert (told.text, told.finish_reason, told.slides, len(told.notes)) == ("Not to", "timeout", 2, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("supersede", ""), ("supersede", "x" * 65), ("supersede", 3), ("timeout", 0), ("timeout", -1), ("timeout", 3601)],
)
@pytest.mark.parametrize("path", [SENTENCE, COMPLETIONS])
def test_bad_keys_and_times_are_refused(client, path, field, value):
    text = "text" if path == SENTENCE else "prompt"
    check_error(client.post(path, {text: "a", field: value}), 400, field)
