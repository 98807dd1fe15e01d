"""Audits: answers that the service draws again while nothing else is to do, and compares."""

import asyncio
import json
import logging
import random
import time

import pytest
from client import COMPLETIONS, SENTENCE
from fake_engine import FakeEngine
from patience import eventually

from gpt2_mlx.generation.prefixes import Prefixes
from gpt2_mlx.serving import audit

LONG = [i % 90 for i in range(140)]  # a block of the prefix cache, and more


def counts(client) -> list[int]:
    """Audits, those that differ, those that were dropped."""
    read = client.telemetry.registry.get_sample_value
    return [int(read(f"gpt2_audits{name}_total")) for name in ("", "_differing", "_dropped")]


def crowd(n: int) -> list[tuple[str, dict]]:
    pick, asked = random.Random(7), []
    for i in range(n):
        sentence = i % 4 == 0
        body = {"text": "To be, or"} if sentence else {"prompt": pick.choice(["To be", LONG, [*LONG, i], ["a", "b"]])}
        body |= {"max_tokens": pick.choice([1, 6, 12]), "temperature": pick.choice([0, 0.7, 1.5])}
        body |= pick.choice([{}, {"seed": i}, {"n": 3}, {"stop": ["e", "on"]}, {"repetition_penalty": 1.3}])
        body |= pick.choice([{}, {"logprobs": 2}, {"structured_outputs": {"regex": "[a-z ]{3,30}"}}])
        if not sentence:
            body |= pick.choice([{}, {"echo": True}, {"presence_penalty": 1.5, "logit_bias": {"11": 5}}])
        asked.append((SENTENCE if sentence else COMPLETIONS, body | {"stream": pick.random() < 0.4}))
    return asked


def ask_all(client, asked: list) -> None:
    import httpx

    async def ask():
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await asyncio.gather(*(http.post(path, json=body) for path, body in asked))

    for response in client.await_(ask()):
        assert response.status_code == 200, response.text
        assert '"error"' not in response.text


@pytest.mark.cpu("equal bits in any company")
def test_a_crowd_is_audited_and_nothing_differs(serve):
    client = serve(1.0)
    ask_all(client, crowd(32))
    assert client.telemetry.registry.get_sample_value("gpt2_prefix_cache_hits_total") > 0
    eventually(lambda: sum(counts(client)) == 32)
    assert counts(client) == [32, 0, 0]


@pytest.mark.cpu("equal bits in any company")
def test_a_wrong_block_is_counted_and_logged_with_a_receipt(serve, monkeypatch, caplog, replayed):
    client, get = serve(1.0), Prefixes.get
    body = {"prompt": LONG, "max_tokens": 8, "temperature": 0}
    right = client.completion(**body, receipt=True)["receipt"]
    eventually(lambda: counts(client) == [1, 0, 0])
    monkeypatch.setattr(Prefixes, "get", lambda *a: (block := get(*a)) and [-5 * part for part in block])
    with caplog.at_level(logging.ERROR):
        wrong = client.completion(**body, receipt=True)["receipt"]
        eventually(lambda: counts(client) == [2, 1, 0])
    monkeypatch.undo()
    [record] = [r for r in caplog.records if "an audit found a difference" in r.getMessage()]
    line = record.getMessage()
    assert "\n" not in line and json.loads(line.partition("the receipt: ")[2]) == wrong
    assert replayed(right) == (0, "the same answer")
    status, line = replayed(wrong)
    first = next(
        i for i, pair in enumerate(zip(*(r["texts"][0]["tokens"] for r in (wrong, right)))) if len(set(pair)) > 1
    )
    was, now = (r["texts"][0]["tokens"][first] for r in (wrong, right))
    assert (status, line) == (1, f"it differs: text 0: token {first} was {was} and is {now}")


class HoldsAudits(FakeEngine):
    """What is to be audited gets on only if it is let."""

    def __init__(self):
        super().__init__()
        self.held, self.asked, self.cold = True, [], set()

    def add(self, id, prompt, params, request, checkpoint):
        self.asked.append((params.seed, params.cold))
        self.cold |= {id} if params.cold else set()
        super().add(id, prompt, params, request, checkpoint)

    def step(self):
        if self.held and {*self.running, *(id for id, *_ in self.waiting)} <= self.cold:
            time.sleep(0.001)
            return []
        return super().step()


def test_an_audit_gives_way_to_a_request_and_is_tried_again(open_client):
    fake = HoldsAudits()
    client = open_client(fake, audit=1.0, max_queue=1)  # in which an audit has no place
    client.completion(seed=1, max_tokens=3)
    eventually(lambda: fake.asked == [(1, False), (1, True)])
    client.completion(seed=2, max_tokens=3)
    eventually(lambda: len(fake.asked) == 4)
    assert fake.asked == [(1, False), (1, True), (2, False), (1, True)]
    assert min(fake.cold) in fake.cancelled and counts(client) == [0, 0, 0]
    fake.held = False
    eventually(lambda: counts(client) == [2, 0, 0])
    assert fake.asked[4:] == [(2, True)]


def test_of_too_many_the_oldest_are_dropped_and_counted(open_client, monkeypatch):
    monkeypatch.setattr(audit, "MAX_AUDITS", 2)
    fake = HoldsAudits()
    client = open_client(fake, audit=1.0)
    for seed in range(5):
        client.completion(seed=seed, max_tokens=1)
    eventually(lambda: counts(client) == [0, 0, 3])
    fake.held = False
    eventually(lambda: counts(client) == [2, 0, 3])
    assert {seed for seed, cold in fake.asked[-2:] if cold} == {3, 4}


@pytest.mark.parametrize("share, n", [(0.0, 0), (0.25, None)])
def test_a_share_is_audited(open_client, share, n):
    client = open_client(audit=share)
    for seed in range(40):
        client.completion(seed=seed, max_tokens=1)
    drawn = random.Random(0)
    expected = sum(drawn.random() < share for _ in range(40))
    assert n in (None, expected)
    eventually(lambda: counts(client) == [expected, 0, 0])


def test_what_was_cut_off_is_not_audited(open_client):
    fake = FakeEngine()
    client = open_client(fake, audit=1.0)
    fake.gate.clear()
    answer = client.completion(max_tokens=4, timeout=0.01, receipt=True)
    assert answer["choices"][0]["finish_reason"] == "timeout" and answer["receipt"] is None
    fake.gate.set()
    client.completion(max_tokens=4)
    eventually(lambda: counts(client) == [1, 0, 0])


def test_an_answer_whose_checkpoint_is_gone_is_dropped(open_client):
    fake = HoldsAudits()
    client = open_client(fake, audit=1.0)
    client.completion(max_tokens=2)
    eventually(lambda: len(fake.asked) == 2)
    fake.unloadable.add(fake.checkpoint.name)
    client.completion(max_tokens=2, checkpoint="step-00000002")
    eventually(lambda: counts(client)[2] == 1)
