import re

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt2_mlx
from gpt2_mlx import GPT2, GPT2Config, checkpoint, tokenizer
from gpt2_mlx.generation.text import TextStream
from gpt2_mlx.tokenizer import token_bytes

ENCODING = tokenizer.load()


TEXTS = st.text(alphabet="ab.?!\"' \n)”é🎭\u2028", max_size=40)


@given(text=TEXTS)
def test_pieces_join_to_the_whole_and_hold_no_half_character(text):
    decoder = TextStream(ENCODING)
    pieces = [*map(decoder.add, ENCODING.encode_ordinary(text)), decoder.finish()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 50_300), max_size=20))
def test_any_ids_decode_as_their_bytes_do(ids):
    decoder = TextStream(ENCODING)
    pieces = [*map(decoder.add, ids), decoder.finish()]
    assert "".join(pieces) == b"".join(token_bytes(ENCODING, id) for id in ids).decode("utf-8", "replace")


@given(text=TEXTS, stops=st.lists(st.text(alphabet="ab.é🎭 ", min_size=1, max_size=4), min_size=1, max_size=4))
def test_stop_strings_are_kept_out_wherever_tokens_end(text, stops):
    # the stop that is complete first, and of those the longest
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    for ids in (ENCODING.encode_ordinary(text), [ENCODING.encode_single_token(bytes([b])) for b in text.encode()]):
        decoder = TextStream(ENCODING, tuple(stops))
        pieces = [*map(decoder.add, ids), decoder.finish()]
        assert "".join(pieces) == expected
        assert decoder.stopped == bool(ends)
        assert decoder.n_given == decoder.n_chars == len(expected)


@given(text=TEXTS)
def test_a_whole_sentence_ends_alike_wherever_tokens_end(text):
    match = re.search(r"[.!?]+[\"'”)]*(?=\s)", text)
    for ids in (ENCODING.encode_ordinary(text), [ENCODING.encode_single_token(bytes([b])) for b in text.encode()]):
        decoder = TextStream(ENCODING, whole_sentence=True)
        pieces = [*map(decoder.add, ids), decoder.finish()]
        assert "".join(pieces) == (text[: match.end()] if match else text)


def test_text_is_held_back_no_longer_than_it_must():
    decoder = TextStream(ENCODING, ("abc",))
    give = [decoder.add(ENCODING.encode_single_token(letter)) for letter in ("x", "a", "b", "x", "a", "b", "c", "x")]
    assert give == ["x", "", "", "abx", "", "", "", ""]
    assert decoder.stopped


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "step-00000001"
    checkpoint.save(folder, GPT2(GPT2Config(block_size=32, n_layer=1, n_head=1, n_embd=8)))
    return gpt2_mlx.load(folder)


def test_the_public_face(loaded):
    model, encoding = loaded
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, 50257)
    text = gpt2_mlx.generate(model, encoding, "KING RICHARD II:", max_tokens=50, temperature=0.8, top_k=50, seed=1)
    pieces = list(gpt2_mlx.stream(model, encoding, "KING RICHARD II:", max_tokens=50, seed=1))
    assert text == "KING RICHARD II:" + "".join(pieces)
    assert len(pieces) > 10
    assert text != gpt2_mlx.generate(model, encoding, "KING RICHARD II:", max_tokens=50, seed=2)
    unseeded = {gpt2_mlx.generate(model, encoding, "a", max_tokens=9) for _ in range(3)}
    assert len(unseeded) == 3
    assert gpt2_mlx.generate(model, encoding, "", max_tokens=3, seed=0)


def test_a_stop_string_ends_the_text(loaded):
    whole = gpt2_mlx.generate(*loaded, "a", max_tokens=30, seed=3)
    stop = whole[12:15]
    cut = gpt2_mlx.generate(*loaded, "a", max_tokens=30, seed=3, stop=[stop])
    assert cut == whole[: 1 + whole[1:].index(stop)]


def test_mistakes_are_named(loaded, tmp_path):
    with pytest.raises(ValueError, match="top_p is 2"):
        gpt2_mlx.generate(*loaded, "a", top_p=2)
    with pytest.raises(ValueError, match="neither a checkpoint"):
        gpt2_mlx.load(tmp_path)


def test_little_is_held_back_however_long_the_text():
    dot, letter = (ENCODING.encode_single_token(char) for char in (".", "a"))
    decoder = TextStream(ENCODING, whole_sentence=True)
    assert [decoder.add(dot) for _ in range(500)] == ["."] * 500
    assert decoder.add(ENCODING.encode_single_token("\n")) == "" and decoder.stopped
    decoder = TextStream(ENCODING, ("a" * 255 + "b",))
    assert len("".join(decoder.add(letter) for _ in range(1000))) == 1000 - 255


@given(text=TEXTS, stop=st.text(alphabet="ab. ", min_size=1, max_size=3))
def test_of_a_stop_string_and_a_sentences_end_the_first_counts(text, stop):
    ends = [(text.find(stop) + len(stop), text.find(stop))] if stop in text else []
    if match := re.search(r"[.!?]+[\"'”)]*(?=\s)", text):
        ends.append((match.end() + 1, match.end()))
    decoder = TextStream(ENCODING, (stop,), whole_sentence=True)
    pieces = [*map(decoder.add, ENCODING.encode_ordinary(text)), decoder.finish()]
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)


def test_one_stop_string_needs_no_list(loaded):
    whole = gpt2_mlx.generate(*loaded, "a", max_tokens=30, seed=3)
    stop = whole[12:15]
    assert gpt2_mlx.generate(*loaded, "a", max_tokens=30, seed=3, stop=stop) == whole[: 1 + whole[1:].index(stop)]


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [1]])
def test_an_empty_stop_string_is_refused(loaded, stop):
    with pytest.raises(ValueError, match="it must be a string or several, none of them empty"):
        gpt2_mlx.generate(*loaded, "a", stop=stop)
