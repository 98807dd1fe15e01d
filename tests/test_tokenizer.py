import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx import tokenizer

ENCODING = tokenizer.load()


@pytest.fixture
def unloaded():
    """As if the vocabulary had not been read yet."""
    tokenizer.load.cache_clear()
    yield
    tokenizer.load.cache_clear()


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
    for name, digest in (("encoder.json", tokenizer.ENCODER_SHA256), ("vocab.bpe", tokenizer.VOCAB_SHA256)):
        assert hashlib.sha256((tokenizer.ASSETS / name).read_bytes()).hexdigest() == digest


def test_a_changed_vocabulary_is_refused(tmp_path, monkeypatch, unloaded):
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).write_bytes((tokenizer.ASSETS / name).read_bytes().replace(b"hello", b"hullo"))
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


def test_no_copy_of_the_vocabulary_is_left_in_the_temporary_folder(tmp_path):
    code = "import os\nfrom gpt2_mlx import tokenizer\ntokenizer.load()\nassert 'TIKTOKEN_CACHE_DIR' not in os.environ"
    hidden = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[1],
        env={**environment, "TMPDIR": str(tmp_path)},
    )
    assert list(tmp_path.iterdir()) == []
