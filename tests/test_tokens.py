"""POST /tokenize and /detokenize."""

import pytest
from client import check_error
from fake_engine import ENCODING

from gpt2_mlx.serving import limits

SAMPLES = ["", "Say:", "A naïve 🎭, indeed\r\n\x00", "<|endoftext|>", "\u2028" * 50]


@pytest.mark.parametrize("text", SAMPLES)
def test_a_text_becomes_ids_and_these_the_text(client, text):
    answer = client.post("/tokenize", {"prompt": text, "model": "any", "add_special_tokens": False}).json()
    assert answer == {"count": len(answer["tokens"]), "max_model_len": 64, "tokens": ENCODING.encode_ordinary(text)}
    assert client.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_a_completion_counts_a_text_as_tokenize_does(client):
    text = SAMPLES[2]
    told = client.post("/tokenize", {"prompt": text}).json()
    assert client.completion(prompt=text)["usage"]["prompt_tokens"] == told["count"]
    assert client.completion(prompt=told["tokens"], echo=True, max_tokens=0)["choices"][0]["text"] == text


def test_half_a_character_is_shown_as_such(client):
    first, *_ = ENCODING.encode_ordinary("🎭")
    assert client.post("/detokenize", {"tokens": [first]}).json()["prompt"] == "\ufffd"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "x" * (limits.MAX_PROMPT_CHARS + 1)}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [[1]]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [50257]}, "tokens"),
        ("/detokenize", {"tokens": [0] * (limits.MAX_PROMPT_CHARS + 1)}, "tokens"),
    ],
)
def test_what_is_refused(client, path, body, param):
    check_error(client.post(path, body), 400, param)


def test_a_key_is_asked_for(open_client):
    client = open_client(api_key="secret")
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        check_error(client.post(path, body), 401)
        assert client.post(path, body, headers={"authorization": "Bearer secret"}).is_success
        check_error(client.get(path), 405)
