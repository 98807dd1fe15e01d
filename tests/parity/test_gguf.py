"""What is written as GGUF, opened by llama.cpp."""

import math
from contextlib import contextmanager

import httpx
import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import GPT2, GPT2Config, checkpoint, gguf, pretrained, tokenizer
from gpt2_mlx.commands import convert

from . import test_lora
from .conftest import greedy, logits
from .test_checkpoint import jittered

xllamacpp = pytest.importorskip("xllamacpp")

LETTERS = GPT2Config(block_size=128, vocab_size=257, n_layer=3, n_head=2, n_embd=64)
BYTES = tokenizer.of_merges([])  # 256 bytes and <|endoftext|>
WORDS = """The king's 1,234.56 déjà vu… naïve; Straße Ελλάδα Привет مرحبا שלום नमस्ते 日本語 한국어 ไทย
    🙂👩\u200d👩\u200d👧 e\u0301 ½ ²³ \u00ad_don't I'LL"""


@contextmanager
def opened(path, lora=None):
    """llama.cpp's server for a file, with an adapter's: `ask(route, **fields)` gives its answer."""
    params = xllamacpp.CommonParams()
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora))] if lora else []
    params.model.path, params.warmup, params.verbosity, params.cpuparams.n_threads = str(path), False, 0, 2
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to 16 bits
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=60, trust_env=False) as client:
        yield lambda route, **fields: client.post(route, json=fields).raise_for_status().json()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_llama_cpp_gives_the_same_greedy_tokens(tmp_path, dtype):
    model = jittered(GPT2Config(block_size=128, n_layer=2, n_head=2, n_embd=64))
    model.set_dtype(getattr(mx, dtype))
    gguf.save(tmp_path / "m.gguf", model, tokenizer.gpt2())
    model.set_dtype(mx.float32)  # the weights are rounded, the computation is not
    prompt = np.random.RandomState(0).randint(0, 50256, 40).tolist()
    with opened(tmp_path / "m.gguf") as ask:
        answer = ask("/completion", prompt=prompt, n_predict=64, temperature=0, return_tokens=True, ignore_eos=True)
    assert answer["tokens"] == greedy(model, prompt, 64)


def test_llama_cpp_gives_the_same_log_probabilities_of_a_vocabulary_without_merges(tmp_path):
    model = jittered(LETTERS)
    gguf.save(tmp_path / "m.gguf", model, BYTES)
    prompt = list(b"to be or not")
    with opened(tmp_path / "m.gguf") as ask:
        theirs = log_probabilities(ask, prompt)
        text = "Hé llo\n\n 日本 🙂 \t x  "
        ids = ask("/tokenize", content=text)["tokens"]
    ours = log_softmax(logits(model, np.array([prompt]))[0, -1])
    assert np.abs(theirs - ours).max() < 5e-3
    assert ids == BYTES.encoding.encode_ordinary(text)
    assert len(ids) == len(text.encode())


def test_llama_cpp_adds_an_adapter_to_its_base(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "base", jittered(test_lora.SHAPE), vocabulary=BYTES)
    model, _ = test_lora.adapted(tmp_path / "base", lora_layers=2, lora_alpha=3.0)
    checkpoint.save(tmp_path / "adapter", model, vocabulary=BYTES)
    for name in ("base", "adapter"):
        monkeypatch.setattr("sys.argv", ["convert", str(tmp_path / name), str(tmp_path / f"{name}.gguf")])
        convert.main()
    prompt = list(b"to be or")
    ours = log_softmax(logits(model, np.array([prompt]))[0, -1])
    of_base = log_softmax(logits(checkpoint.load(tmp_path / "base"), np.array([prompt]))[0, -1])
    assert np.abs(of_base - ours).max() > 0.1
    with opened(tmp_path / "base.gguf", lora=tmp_path / "adapter.gguf") as ask:
        theirs = log_probabilities(ask, prompt)
        answer = ask("/completion", prompt=prompt, n_predict=15, temperature=0, return_tokens=True, ignore_eos=True)
    assert np.abs(theirs - ours).max() < 5e-3
    whole = pretrained.load(tmp_path / "adapter")
    assert answer["tokens"] == greedy(whole, prompt, 15)


@pytest.mark.parametrize("n_merges", [50000, 700])
def test_llama_cpp_gives_the_same_token_ids(tmp_path, n_merges):
    lines = tokenizer.gpt2().merges.splitlines()[1 : 1 + n_merges]
    vocabulary = tokenizer.of_merges([tuple(line.split(" ")) for line in lines])
    model = GPT2(GPT2Config(block_size=64, vocab_size=vocabulary.size, n_layer=1, n_head=1, n_embd=32))
    gguf.save(tmp_path / "m.gguf", model, vocabulary)
    text = mixed_text()
    ids = vocabulary.encoding.encode_ordinary(text)
    assert len(ids) >= 5000
    with opened(tmp_path / "m.gguf") as ask:
        assert ask("/tokenize", content=text)["tokens"] == ids
        assert ask("/detokenize", tokens=ids)["content"] == text
        assert ask("/tokenize", content="a<|endoftext|>b", parse_special=True)["tokens"] == [64, vocabulary.eot, 65]


def mixed_text() -> str:
    """Words of many scripts, marks, digits, emoji and spaces of every kind, and every letter below U+3000 once."""
    draw = np.random.RandomState(1)
    spaces = [" ", "  ", "\n", "\n\n ", "\t", "\r\n", "\u00a0", "\u3000", " \n  x", ""]
    drawn = "".join(draw.choice(WORDS.split()) + draw.choice(spaces) for _ in range(1200))
    return drawn + "".join(chr(code) for code in range(1, 0x3000) if chr(code).isprintable())


@pytest.mark.parametrize(("bits", "allowed"), [(8, 0.01), (4, 0.1)])
def test_the_perplexity_of_a_rounded_model(tmp_path, bits, allowed):
    """Over a text that the model wrote itself, so that its perplexity is far from that of chance."""
    model = jittered(LETTERS)
    model.ln_f.weight = 3 * model.ln_f.weight  # surer of its next token
    gguf.save(tmp_path / "m.gguf", model, BYTES, bits)
    tokens = [10]
    for i in range(100):
        row = mx.array(logits(model, np.array([tokens]))[0, -1])
        tokens.append(mx.random.categorical(row, key=mx.random.key(i)).item())
    ours = log_softmax(logits(model, np.array([tokens[:-1]]))[0])
    ours = -np.mean([row[target] for row, target in zip(ours, tokens[1:])])
    with opened(tmp_path / "m.gguf") as ask:
        theirs = -np.mean([log_probabilities(ask, tokens[:n])[tokens[n]] for n in range(1, len(tokens))])
    assert ours < 0.9 * math.log(257)
    assert abs(math.exp(theirs - ours) - 1) < allowed


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def log_probabilities(ask, prompt: list[int]) -> np.ndarray:
    """(257,) of the token that follows. The token that is drawn is a whole character, else the answer tells none."""
    answer = ask("/completion", prompt=prompt, n_predict=1, n_probs=257, temperature=0, logit_bias=[[39, 1000]])
    found = {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
    return np.array([found[id] for id in range(257)])
