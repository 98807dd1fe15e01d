import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt2_mlx
from gpt2_mlx import GPT2, GPT2Config, checkpoint, tokenizer
from gpt2_mlx.generation.text import TextStream

ENCODING = tokenizer.load()


def streamed(text: str, stop: list[str], sizes: list[int]) -> tuple[list[str], bool]:
    ids, out, pieces = ENCODING.encode_ordinary(text), TextStream(ENCODING, stop), []
    while ids:
        n = sizes.pop() if sizes else 1
        pieces.append(out.push(ids[:n]))
        ids = ids[n:]
    return [*pieces, out.finish()], out.stopped


@given(
    st.text(alphabet="abc \N{GRINNING FACE}", max_size=40),
    st.lists(st.text(alphabet="abc \N{GRINNING FACE}", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 3)),
)
def test_the_text_ends_before_the_stop_string_that_is_complete_first_however_it_is_cut(text, stop, sizes):
    pieces, stopped = streamed(text, stop, sizes)
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]  # the first to be complete
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)
    assert stopped == bool(ends)


def test_what_cannot_become_a_stop_string_is_not_held_back():
    out = TextStream(ENCODING, ["\n\nROMEO:"])
    assert out.push(ENCODING.encode_ordinary("Speak.\n\n")) == "Speak."
    assert out.push(ENCODING.encode_ordinary("JULIET:")) == "\n\nJULIET:"
    assert out.push(ENCODING.encode_ordinary("\n\nROMEO:")) == ""
    assert out.stopped


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
