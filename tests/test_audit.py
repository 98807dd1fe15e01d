"""Audits and receipts: answers that are drawn again, by the service or by `gpt2-mlx replay`, and compared."""

import asyncio
import json
import logging
import random
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import pytest
from client import COMPLETIONS, SENTENCE
from fake_engine import FakeEngine
from mlx.utils import tree_map
from patience import eventually

from gpt2_mlx import checkpoint, cli
from gpt2_mlx.commands import replay
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.prefixes import Prefixes
from gpt2_mlx.model import GPT2
from gpt2_mlx.pretrained import LoadConfig
from gpt2_mlx.serving import audit
from gpt2_mlx.serving.engines import Engines, loading
from gpt2_mlx.tokenizer import load as load_encoding

BLOCK = 192
LONG = [i % 90 for i in range(140)]  # a block of the prefix cache, and more


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "step-00000001"
    model = GPT2(GPT2Config(block_size=BLOCK, n_layer=1, n_head=1, n_embd=8), seed=1)
    model.update(tree_map(lambda p: 8 * p if p.ndim == 2 else p, model.parameters()))  # far from uniform
    checkpoint.save(folder, model)
    return folder


class RealEngine:
    """Real engines for `ThreadProcess`."""

    def __init__(self, folder: Path):
        self.checkpoint, self.gate, self.killed = folder, threading.Event(), threading.Event()

    def begin(self, on_pass):
        def make(model, _):
            return Engine(model, 8, on_pass, 16, load_encoding())

        return Engines(lambda folder: loading(folder, "float32", None, make), self.checkpoint)


class Run:
    name, block_size = "verse", BLOCK

    def __init__(self, folder: Path):
        self.folder = folder

    def checkpoints(self):
        return {self.folder.name: self.folder}


@pytest.fixture
def serve(open_client, folder):
    def serve(share: float = 0.0):
        how = LoadConfig(device="cpu", dtype="float32")
        return open_client(RealEngine(folder), run=Run(folder), audit=share, how=how)

    return serve


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


def run_replay(monkeypatch, capsys, *words) -> tuple[int, str]:
    """The exit status and the one line."""
    monkeypatch.setattr(sys, "argv", ["gpt2-mlx replay", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.run(replay.main)
    told = capsys.readouterr()
    lines = (told.out + told.err).splitlines()
    assert len(lines) == 1, lines
    return end.value.code, lines[0]


@pytest.fixture
def replayed(monkeypatch, capsys, tmp_path):
    def replayed(receipt: dict | str, *flags) -> tuple[int, str]:
        file = tmp_path / "receipt.json"
        file.write_text(receipt if isinstance(receipt, str) else json.dumps(receipt))
        return run_replay(monkeypatch, capsys, file, *flags)

    return replayed


# Audits


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


# Receipts


@pytest.mark.cpu("equal bits in any company")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [SENTENCE, COMPLETIONS])
def test_an_answer_comes_again_from_its_receipt(serve, replayed, path, stream):
    client = serve()
    body = {"text" if path == SENTENCE else "prompt": "To be", "max_tokens": 9, "n": 2, "logprobs": 1, "stop": "zz"}
    if path == COMPLETIONS:
        body |= {"echo": True, "logit_bias": {"11": 3}, "user": "me", "model": "any"}
    body |= {"structured_outputs": {"json": {"type": "array", "items": {"type": "integer"}}}, "receipt": True}
    answer = client.events(path, body | {"seed": None})[-1] if stream else client.post(path, body).json()
    receipt = answer["receipt"]
    assert 0 <= receipt["request"]["seed"] < 2**63
    assert not {"user", "model", "receipt", "stream"} & set(receipt["request"])
    assert replayed(receipt) == (0, "the same answer")
    texts = [receipt["texts"][0], receipt["texts"][1] | {"sha256": "0"}]
    told = "it differs: text 1: the same tokens, but another text or other log-probabilities"
    assert replayed(receipt | {"texts": texts}) == (1, told)
    again = client.post(path, body | {"seed": receipt["request"]["seed"]}).json()
    assert again["receipt"] == receipt


def test_without_the_wish_there_is_no_receipt(client):
    assert "receipt" not in client.completion(max_tokens=1) and "receipt" not in client.sentence(max_tokens=1)
    assert all("receipt" not in event for event in client.events(COMPLETIONS, {"prompt": "a", "max_tokens": 1}))


@pytest.fixture(scope="module")
def receipt(folder) -> dict:
    """One that holds but for its texts."""
    from gpt2_mlx.serving import receipts

    how = receipts.versions(LoadConfig(device="cpu", dtype="float32"))
    return {
        "route": COMPLETIONS,
        "request": {"prompt": "a", "seed": 1, "max_tokens": 2, "temperature": 0},
        "checkpoint": str(folder),
        "sha256": receipts.sha256(folder),
        "versions": how.model_dump(),
        "texts": [{"tokens": [1, 2], "finish_reason": "length", "sha256": "0"}],
    }


@pytest.mark.parametrize(
    "change, told",
    [
        ({"texts": []}, "texts"),
        ({"sha256": None}, "sha256"),
        ({"sha256": "0"}, "it must be that of the receipt"),
        ({"route": "/x"}, "route"),
        ({"more": 1}, "more"),
        ({"checkpoint": "/nowhere"}, "/nowhere"),
        ({"request": {"prompt": "a", "seed": 1, "topk": 1}}, "topk is not a field"),
        ({"request": {"prompt": "a"}}, "no seed"),
        ({"request": {"prompt": "a", "seed": 1, "n": 2}}, "1 texts, but its request asks for 2"),
        ({"request": {"prompt": [[60000]], "seed": 1}}, "token ids must be"),
        ({"request": {"prompt": "a", "seed": 1, "structured_outputs": {"regex": "("}}}, "error"),
    ],
)
def test_a_receipt_that_cannot_be_run_is_told_in_a_line(replayed, receipt, change, told):
    status, line = replayed(receipt | change)
    assert status == 2 and told in line


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"route": "\\ud800"}'])
def test_what_is_no_receipt_is_told_in_a_line(replayed, content):
    status, line = replayed(content)
    assert status == 2 and "is no receipt" in line


def test_a_receipt_that_lacks_a_field_names_it(replayed, receipt):
    for name in receipt:
        status, line = replayed({key: value for key, value in receipt.items() if key != name})
        assert status == 2 and name in line


def test_no_file_and_another_checkpoint(replayed, receipt, monkeypatch, capsys, tmp_path):
    assert run_replay(monkeypatch, capsys, tmp_path / "none.json")[0] == 2
    checkpoint.save(tmp_path / "other", GPT2(GPT2Config(block_size=BLOCK, n_layer=1, n_head=1, n_embd=8), seed=2))
    status, line = replayed(receipt, "--checkpoint", tmp_path / "other")
    assert status == 2 and "it must be that of the receipt" in line
    assert replayed(receipt | {"checkpoint": "gone"}, "--checkpoint", receipt["checkpoint"])[0] == 1


def test_what_computes_otherwise_is_told(replayed, receipt):
    status, line = replayed(receipt | {"versions": receipt["versions"] | {"mlx": "0.0.1"}})
    assert status == 1 and line.endswith(f"mlx was 0.0.1 and is {mx.__version__}")
