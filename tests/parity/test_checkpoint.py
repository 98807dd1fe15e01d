"""What is saved here, opened by transformers and mlx-lm."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from gpt2_mlx import GPT2, GPT2Config, checkpoint, tokenizer
from gpt2_mlx.corpus import vocabularies

from .conftest import greedy, logits, some_tokens, torch_greedy, torch_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
mlx_lm = pytest.importorskip("mlx_lm")

CONFIGS = [
    GPT2Config(block_size=24, vocab_size=61, n_layer=3, n_head=2, n_embd=12),
    GPT2Config(block_size=48, n_layer=2, n_head=2, n_embd=32),
]


def jittered(config: GPT2Config) -> GPT2:
    """A model none of whose parameters is at its initial zero or one, whose likeliest token stands out."""
    model = GPT2(config, seed=3)
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape, key=mx.random.key(p.size)), model.parameters()))
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_gives_the_same_logits_and_greedy_text(config, tmp_path):
    ours = jittered(config)
    checkpoint.save(tmp_path / "saved", ours)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = some_tokens(ours)
    assert np.abs(logits(ours, tokens) - torch_logits(theirs.eval(), tokens)).max() < 1e-4
    half = config.block_size // 2
    assert greedy(ours, tokens[0, :half].tolist(), half) == torch_greedy(theirs, tokens[0, :half].tolist(), half)


@pytest.mark.parametrize("config", CONFIGS)
def test_mlx_lm_gives_the_same_logits_and_greedy_text(config, tmp_path):
    ours = jittered(config)
    checkpoint.save(tmp_path / "saved", ours)
    theirs, _ = mlx_lm.load(str(tmp_path / "saved"))
    tokens = some_tokens(ours)
    assert np.abs(logits(ours, tokens) - np.array(theirs(mx.array(tokens)))).max() < 1e-4
    half = config.block_size // 2
    prompt = tokens[0, :half].tolist()
    assert greedy(ours, prompt, half) == mlx_lm_greedy(theirs, prompt, half)


@pytest.mark.parametrize("bits", [8, 4])
def test_mlx_lm_opens_quantised_folders_and_transformers_refuses_them(bits, tmp_path):
    ours = jittered(CONFIGS[1])
    ours.quantize(bits)
    checkpoint.save(tmp_path / "saved", ours)
    theirs, _ = mlx_lm.load(str(tmp_path / "saved"))
    tokens = some_tokens(ours)
    assert np.abs(logits(ours, tokens) - np.array(theirs(mx.array(tokens)))).max() < 1e-4
    prompt = tokens[0, :24].tolist()
    assert greedy(ours, prompt, 24) == mlx_lm_greedy(theirs, prompt, 24)
    with pytest.raises(ValueError, match="quantization config"):  # better than random weights
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_folders_hold_the_same_weights_elsewhere(dtype, tmp_path):
    ours = jittered(CONFIGS[0])
    ours.set_dtype(getattr(mx, dtype))
    checkpoint.save(tmp_path / "saved", ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert theirs.dtype == getattr(torch, dtype)
    also, _ = mlx_lm.load(str(tmp_path / "saved"))
    ours.set_dtype(mx.float32)
    also.set_dtype(mx.float32)
    tokens = some_tokens(ours)
    assert np.abs(logits(ours, tokens) - torch_logits(theirs.float().eval(), tokens)).max() < 1e-4
    assert np.abs(logits(ours, tokens) - np.array(also(mx.array(tokens)))).max() < 1e-4


def test_the_tokenizer_is_the_same_elsewhere(tmp_path):
    checkpoint.save(tmp_path / "saved", GPT2(CONFIGS[1]))
    text = "The course of true love\n\n  did  never run smooth…  déjà vu 日本 🙂 <|endoftext|>x"
    ids = tokenizer.load().encode(text, allowed_special="all")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert theirs.eos_token_id == 50256 and theirs.model_max_length == CONFIGS[1].block_size


OWN = {
    "bytes": tokenizer.of_merges([]),
    "280": vocabularies.trained(280, ["It isn't a summer's day, naïve café! " * 9], ""),
}


@pytest.mark.parametrize("name", OWN)
def test_a_vocabulary_of_ones_own_is_the_same_elsewhere(name, tmp_path):
    own = OWN[name]
    ours = jittered(GPT2Config(block_size=48, vocab_size=own.size, n_layer=2, n_head=2, n_embd=32))
    checkpoint.save(tmp_path / "saved", ours, vocabulary=own)
    text = "The summer's day…  it isn't\n\n naïve 日本 🙂 <|endoftext|>x"
    ids = own.encoding.encode(text, allowed_special="all")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    model, also = mlx_lm.load(str(tmp_path / "saved"))
    assert theirs(text)["input_ids"] == also.encode(text) == ids and own.eot in ids
    assert theirs.decode(ids) == also.decode(ids) == text
    assert theirs.eos_token_id == also.eos_token_id == own.eot and len(theirs) == own.size
    tokens, prompt = some_tokens(ours), some_tokens(ours)[0, :24].tolist()
    torch_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch_model.config.eos_token_id == torch_model.generation_config.eos_token_id == own.eot
    assert np.abs(logits(ours, tokens) - torch_logits(torch_model, tokens)).max() < 1e-4
    assert np.abs(logits(ours, tokens) - np.array(model(mx.array(tokens)))).max() < 1e-4
    assert greedy(ours, prompt, 24) == torch_greedy(torch_model, prompt, 24) == mlx_lm_greedy(model, prompt, 24)


def mlx_lm_greedy(model, prompt: list[int], n: int) -> list[int]:
    from mlx_lm.generate import generate_step

    return [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=n)]
