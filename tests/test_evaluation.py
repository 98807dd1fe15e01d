import math

import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import GPT2, GPT2Config, device, tokenizer
from gpt2_mlx.training import evaluation

ENCODING = tokenizer.load()
TEXT = "Shall I compare thee to a summer's day? Thou art more lovely, naïve and 更 temperate. " * 4
TOKENS = np.array(ENCODING.encode_ordinary(TEXT), np.uint16)


@pytest.fixture(scope="module")
def model() -> GPT2:
    return GPT2(GPT2Config(block_size=12, n_layer=2, n_head=2, n_embd=32), seed=5)


def one_by_one(model: GPT2, tokens: np.ndarray, stride: int) -> float:
    """The mean loss, each token predicted alone from the window that is to count it."""
    T, losses = model.config.block_size, []
    for at in range(1, len(tokens)):
        start = max(0, -(-(at - T) // stride)) * stride
        logits = model(mx.array(tokens[start:at].astype(np.int32))[None])[0, -1]
        losses.append((mx.logsumexp(logits) - logits[int(tokens[at])]).item())
    return float(np.mean(losses))


@pytest.mark.parametrize("stride", [12, 5, 1])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_loss_is_the_mean_over_tokens_each_with_its_window(model, stride, batch_size):
    score = evaluation.score_text(model, ENCODING, TOKENS, stride, batch_size)
    assert score.loss == pytest.approx(one_by_one(model, TOKENS, stride), rel=1e-5)
    assert score.tokens == len(TOKENS) - 1


def test_perplexity_and_bits_per_byte(model):
    score = evaluation.score_text(model, ENCODING, TOKENS)
    n_bytes = len(TEXT.encode()) - len(ENCODING.decode_single_token_bytes(int(TOKENS[0])))
    assert score.bytes == n_bytes
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(score.loss * score.tokens / n_bytes * math.log2(math.e))
    assert evaluation.Score(1e9, 1, 1).perplexity == math.exp(700)


def test_the_mark_between_two_texts_counts_no_bytes(model):
    tokens = np.array([*TOKENS[:9], tokenizer.EOT, *TOKENS[:9]], np.uint16)
    score = evaluation.score_text(model, ENCODING, tokens)
    assert score.tokens == 18
    n_bytes = len(ENCODING.decode_bytes(TOKENS[:9].tolist()))
    assert score.bytes == 2 * n_bytes - len(ENCODING.decode_single_token_bytes(int(TOKENS[0])))


def test_a_quantised_model_is_scored_with_its_quantised_head(model):
    quantised = GPT2(model.config)
    quantised.update(model.parameters())
    quantised.quantize(4)
    loss = evaluation.score_text(quantised, ENCODING, TOKENS[:20]).loss
    assert loss == pytest.approx(one_by_one(quantised, TOKENS[:20], 12), rel=1e-5)
    assert loss != pytest.approx(evaluation.score_text(model, ENCODING, TOKENS[:20]).loss, rel=1e-6)


@pytest.mark.cpu("a GPU takes a batch whole")
def test_rows_are_those_of_one_core(model, monkeypatch):
    random = np.random.RandomState(0)
    batch = [random.randint(0, 50257, (4, 8)).astype(np.int32) for _ in range(2)]
    whole = evaluation.Evaluator(model, device.streams(1), compile=False).rows(*batch)
    monkeypatch.setattr(device, "cpu_count", lambda: 4)
    streams = device.streams(4)
    assert len(streams) == 4
    assert evaluation.Evaluator(model, streams).rows(*batch) == pytest.approx(whole, rel=1e-5)
    assert (np.argsort(whole) != np.arange(4)).any() and len(set(whole)) == 4


@pytest.mark.parametrize(
    ("tokens", "stride", "message"),
    [
        (TOKENS, 13, "--stride is 13; it must be at least 1 and at most the model's block_size, 12"),
        (TOKENS, 0, "--stride is 0"),
        (TOKENS[:1], None, "too short: 1 tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, tokens, stride, message):
    with pytest.raises(ValueError, match=message):
        evaluation.score_text(model, ENCODING, tokens, stride)


def test_a_text_beyond_the_models_vocabulary_is_refused():
    small = GPT2(GPT2Config(block_size=8, vocab_size=100, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(ValueError, match="the model knows those below 100"):
        evaluation.score_text(small, ENCODING, TOKENS)
