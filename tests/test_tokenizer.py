import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx import tokenizer

ENCODING = tokenizer.load()


@pytest.fixture
def unloaded():
    """As if the vocabulary had not been read yet."""
    tokenizer.gpt2.cache_clear()
    yield
    tokenizer.gpt2.cache_clear()


def test_known_ids():
    # published with GPT-2: https://github.com/openai/gpt-2, and in many places since
    assert ENCODING.encode_ordinary("Hello world") == [15496, 995]
    assert ENCODING.encode_ordinary("The quick brown fox") == [464, 2068, 7586, 21831]
    assert ENCODING.n_vocab == tokenizer.VOCAB_SIZE
    assert ENCODING.decode([tokenizer.EOT]) == "<|endoftext|>"


@given(st.text())
def test_text_survives(text):
    ids = ENCODING.encode_ordinary(text)
    assert ENCODING.decode(ids) == text
    assert all(0 <= i < tokenizer.EOT for i in ids)


@given(st.text(st.characters()))  # surrogates, too
def test_encode_gives_the_ids_of_encode_ordinary(text):
    ids = tokenizer.encode(ENCODING, text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == ENCODING.encode_ordinary(text)


@given(st.text())
def test_streamed_pieces_join_to_the_whole_and_hold_no_half_character(text):
    decoder = tokenizer.StreamingDecoder(ENCODING)
    pieces = [decoder.add(id) for id in ENCODING.encode_ordinary(text)]
    assert "".join(pieces) == text
    assert all(piece in text for piece in pieces)
    assert decoder.finish() == ""


def test_a_character_that_never_comes_is_told_at_the_end():
    decoder = tokenizer.StreamingDecoder(ENCODING)
    assert decoder.add(ENCODING.encode_ordinary("\N{GRINNING FACE}")[0]) == ""
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"


def test_endoftext_in_a_text_is_text():
    assert tokenizer.EOT not in ENCODING.encode_ordinary("<|endoftext|>")


def test_the_files_are_openais():
    files = tokenizer.gpt2().files(1024)
    encoder = (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"  # of the encoder.json that OpenAI published
    )
    for name, digest in (("vocab.json", encoder), ("merges.txt", tokenizer.VOCAB_SHA256)):
        assert hashlib.sha256(files[name]).hexdigest() == digest


def test_a_changed_vocabulary_is_refused(tmp_path, monkeypatch, unloaded):
    (tmp_path / "vocab.bpe").write_bytes((tokenizer.ASSETS / "vocab.bpe").read_bytes().replace(b"h e\n", b"h f\n"))
    monkeypatch.setattr(tokenizer, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match="is not the file that OpenAI published"):
        tokenizer.load()


def test_no_network(monkeypatch, tmp_path, unloaded):
    import socket

    def refuse(*args):
        raise AssertionError("the tokenizer opens a connection")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert tokenizer.load().n_vocab == tokenizer.VOCAB_SIZE
