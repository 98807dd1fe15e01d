"""Receipts: what an answer followed from, enough to draw it again."""

import pytest
from client import COMPLETIONS, SENTENCE


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
