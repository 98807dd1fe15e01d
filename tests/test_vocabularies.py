"""Vocabularies of one's own: bytes alone, and those that are trained on a text."""

import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import ENDOFTEXT
from tokenizers import Tokenizer, models, pre_tokenizers

from gpt2_mlx import GPT2, GPT2Config, checkpoint, pretrained, tokenizer
from gpt2_mlx.corpus import shards, vocabularies
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.corpus.source import Source

SAMPLE = "It isn't a summer's day: she'll go — naïve café, 3 or 33 ducats!\n\n  \N{GRINNING FACE} " * 9
BYTES = tokenizer.of_merges([])


@cache
def small() -> tokenizer.Vocabulary:
    return vocabularies.trained(300, [SAMPLE], "sample")


def source(folder: Path, text: str) -> Source:
    path = folder / f"{len(list(folder.iterdir()))}.txt"
    path.write_text(text)
    return Source("some", (path,))


def verse(seed: int, n: int, words=("thou", "thee", "summer", "day", "lovely", "more", "and", "art", "a")) -> str:
    return " ".join(random.Random(seed).choices(words, k=n)) + " "


@pytest.mark.parametrize("own", [BYTES, small()], ids=["bytes", "300"])
@given(text=st.text())
@example(text="x<|endoftext|>y")
def test_any_text_survives_and_its_tokens_are_those_of_the_package_tokenizers(own, text):
    ids = own.encoding.encode_ordinary(text)
    assert own.encoding.decode(ids) == text
    assert all(0 <= id < own.eot for id in ids)
    assert sum(int(own.n_bytes[id]) for id in ids) == len(text.encode())
    assert ids == by_tokenizers(own).encode(text).ids


@cache
def by_tokenizers(own: tokenizer.Vocabulary) -> tokenizers.Tokenizer:
    merges = [tuple(line.split()) for line in own.merges.splitlines()[1:]]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(own.ids, merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return theirs


def test_bytes_are_257_tokens_and_the_last_one_ends_a_text():
    assert (BYTES.name, BYTES.size, BYTES.eot) == ("bytes", 257, 256)
    assert BYTES.encoding.encode_ordinary("A!") == [ord("A") - 33, 0]  # in GPT-2's order of bytes
    assert BYTES.encoding.decode([256]) == "<|endoftext|>" and BYTES.encoding.eot_token == 256
    assert BYTES.n_bytes.tolist() == [1] * 256 + [0]
    assert (small().name, small().size, small().encoding.n_vocab) == ("300", 300, 300)
    assert small().n_bytes.max() > 2


# The number of threads, the order of hashing and whether a thread pool is there at all.
ENVIRONMENTS = [{"RAYON_NUM_THREADS": "1"}, {"RAYON_NUM_THREADS": "7"}, {"TOKENIZERS_PARALLELISM": "false"}]


def test_training_does_not_depend_on_threads():
    words = verse(0, 20_000, words=[f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "klmnopqr"])
    texts = [words[i : i + 700] for i in range(0, len(words), 700)]
    code = "import json, sys; from gpt2_mlx.corpus import vocabularies;"
    code += "print(vocabularies.trained(600, json.load(sys.stdin), 'words').sha256)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(texts),
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[1],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for environment in ENVIRONMENTS
    }
    assert found == {vocabularies.trained(600, texts[::-1], "words").sha256 + "\n"}  # nor on the order of pieces


def test_what_comes_after_the_training_split_changes_nothing(tmp_path):
    text = verse(1, 900)
    n = len(text) * 8 // 10
    whole = vocabularies.find("280", source(tmp_path, text), tmp_path / "cache")
    other = vocabularies.find("280", source(tmp_path, text[:n] + "#" * (len(text) - n)), tmp_path / "cache")
    before = vocabularies.find("280", source(tmp_path, "#" * (len(text) - n) + text[-n:]), tmp_path / "cache")
    assert whole == other != before


def test_no_text_of_val_is_seen_where_the_training_split_has_few_bytes(tmp_path, monkeypatch):
    """Long words at the end become one token each, so that the first 80 % of the tokens are half of the bytes."""
    text = source(tmp_path, verse(2, 6000, words=["x", "y", "zq"]) + verse(3, 2000, words=["honorific"]))
    tried = []
    monkeypatch.setattr(
        vocabularies, "_first", lambda n, text, first=vocabularies._first: tried.append(n) or first(n, text)
    )
    own = vocabularies.find("269", text, tmp_path / "cache")
    split = TokenDataset.open(text, tmp_path / "cache", own).split("train")
    made = vocabularies.key_of(text, "a vocabulary of 269 tokens"), vocabularies.key_of(text, own.sha256)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == set(made)  # what was tried in vain is gone
    assert len(tried) > 1 and tried[0] > own.n_bytes[np.asarray(split)].sum() >= tried[-1]


def test_it_is_made_once_for_a_text(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(vocabularies, "trained", lambda *args, make=vocabularies.trained: made.append(1) or make(*args))
    text, cache = verse(4, 900), tmp_path / "cache"
    first = vocabularies.find("280", source(tmp_path, text), cache)
    assert vocabularies.find("280", source(tmp_path, text), cache) == first and len(made) == 1
    assert vocabularies.find("275", source(tmp_path, text), cache).size == 275 and len(made) == 2
    for path in cache.glob("*/merges.txt"):
        path.write_text("damaged")
    assert vocabularies.find("280", source(tmp_path, text), cache) == first and len(made) == 3


def test_half_a_surrogate_pair_in_json_is_read_as_it_is_encoded(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "\\ud800 and " * 50 + '"}')
    own = vocabularies.find("262", Source("some", (path,)), tmp_path / "cache")
    dataset = TokenDataset.open(Source("some", (path,)), tmp_path / "cache", own)
    assert own.encoding.decode(np.asarray(dataset.tokens).tolist()) == "\N{REPLACEMENT CHARACTER} and " * 50


def test_too_many_tokens_for_a_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--vocab is 5000, but some is so short that it gives only 2.. tokens"):
        vocabularies.find("5000", source(tmp_path, verse(0, 100)), tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/merges.txt"))


def test_shards_know_their_vocabulary(tmp_path):
    text = source(tmp_path, verse(5, 900))
    own = vocabularies.find("280", text, tmp_path / "cache")
    made = TokenDataset.open(text, tmp_path / "cache", own)
    folder = next(path.parent for path in (tmp_path / "cache").glob("*/shards.json"))
    given = Source("made", (folder,))
    assert vocabularies.find(None, given) == vocabularies.find("280", given) == own
    assert (np.asarray(TokenDataset.open(given, vocabulary=own).tokens) == np.asarray(made.tokens)).all()
    with pytest.raises(ValueError, match="--vocab is gpt2, but the tokens in .* are of the vocabulary 280"):
        vocabularies.find("gpt2", given)
    with pytest.raises(ValueError, match="another format or vocabulary than bytes"):
        TokenDataset.open(given, vocabulary=BYTES)
    assert shards.vocabulary(folder) == own


@pytest.mark.parametrize("own", [BYTES, small()], ids=["bytes", "300"])
def test_a_checkpoint_carries_it(own, tmp_path):
    model = GPT2(GPT2Config(block_size=8, vocab_size=own.size, n_layer=1, n_head=1, n_embd=8))
    checkpoint.save(tmp_path / "saved", model, vocabulary=own)
    assert pretrained.vocabulary(tmp_path / "saved") == own
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert [config[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")] == [own.size, own.eot, own.eot]
    assert pretrained.find(tmp_path / "saved") == tmp_path / "saved"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda merges: merges.replace("\n", "\nZ Z Z\n", 1), "merges.txt cannot be read"),
        (lambda merges: merges.replace("\n", "\nqu qu\n", 1), "the merge 'qu qu' joins unknown tokens"),
        (lambda merges: merges + merges.splitlines()[1] + "\n", "makes a known one"),
        (
            lambda merges: merges + "Z Z\n",
            "vocab.json is not GPT-2's vocabulary, nor one that follows from its merges",
        ),
    ],
)
def test_merges_that_do_not_make_the_ids_are_refused(tmp_path, damage, message):
    for name, content in small().files(8).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "merges.txt").write_text(damage(small().merges))
    with pytest.raises(ValueError, match=message):
        pretrained.vocabulary(tmp_path)


def tokenizer_json(own) -> dict:
    """As the package tokenizers writes it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = {token: id for token, id in own.ids.items() if id < own.eot}
    merges = [tuple(line.split(" ")) for line in own.merges.splitlines()[1:]]
    bpe.model = models.BPE(tokens, merges)
    bpe.add_special_tokens([ENDOFTEXT])
    return json.loads(bpe.to_str())


def test_a_folder_with_nothing_but_a_tokenizer_json_has_its_vocabulary(tmp_path):
    told = tokenizer_json(small())
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    assert pretrained.vocabulary(tmp_path) == small()
    told["model"]["merges"] = [" ".join(merge) for merge in told["model"]["merges"]]  # as older versions write them
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    assert pretrained.vocabulary(tmp_path) == small()


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"added_tokens": []},
        {"added_tokens": [{"content": "<|endoftext|>", "id": 299}, {"content": "<pad>", "id": 300}]},
        {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}},
    ],
)
def test_another_kind_of_tokenizer_json_is_refused_in_a_line(tmp_path, change):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(small()) | change))
    with pytest.raises(
        ValueError, match="tokenizer.json is not GPT-2's vocabulary, nor one that follows from its merges"
    ):
        pretrained.vocabulary(tmp_path)


@pytest.mark.parametrize("name", ["", "gpt3", "256", "50258", "01024", "1e3", "-1", "102\N{SUPERSCRIPT TWO}", "bytes "])
def test_another_name_is_refused(name):
    with pytest.raises(
        ValueError, match="it must be gpt2, bytes or a number of tokens, at least 257 and at most 50257"
    ):
        tokenizer.size_of(name)


def test_names_and_sizes():
    assert [tokenizer.size_of(name) for name in ("gpt2", "bytes", "257", "1024", "50257")] == [
        50257,
        257,
        257,
        1024,
        50257,
    ]
