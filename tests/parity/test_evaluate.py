"""What `evaluate` reports, against the same told by transformers and PyTorch."""

import json
import math

import numpy as np
import pytest
from served import begun, http

from gpt2_mlx import GPT2Config, checkpoint, tokenizer
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.corpus.source import find
from gpt2_mlx.training import evaluation, hellaswag

from .conftest import SHAPES
from .test_checkpoint import OWN, jittered

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ENCODING = tokenizer.load()
VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely, naïve, and more temperate.\n" * 9
ITEMS = [
    {
        "ctx": "A man is sitting on a roof. he",
        "endings": ["is using wrap to wrap a pair of skis.", "is ripping tiles.", "sings", "starts"],
        "label": 3,
    },
    {
        "ctx": "Two dogs",
        "endings": ["bark at the moon and at each other", "fly", "swim home", "read books"],
        "label": 0,
    },
    {"ctx": "The cook adds salt and", "endings": ["tastes the soup.", "is a roof.", "of", "the the the"], "label": 1},
    {"ctx": "Rain", "endings": ["falls", "is dry", "sings a long song about the sun", "eats"], "label": 2},
    {"ctx": "He opens the door, then", "endings": ["he leaves", "a", "the cat sleeps on it", "no"], "label": 1},
]


@pytest.fixture(scope="module")
def pair(foreign):
    """transformers' model, and ours of the folder it wrote."""
    theirs, folder = foreign(**SHAPES["text"], seed=7)
    return theirs, checkpoint.load(folder)


def loss_over_windows(model, tokens: list[int], stride: int) -> tuple[float, int]:
    """The mean loss over overlapping windows, each token counted once, in the way of transformers' guide."""
    T, total, count, counted = model.config.n_positions, 0.0, 0, 0
    for begin in range(0, len(tokens) - 1, stride):
        end = min(begin + T, len(tokens) - 1)
        labels = torch.tensor(tokens[begin + 1 : end + 1])
        labels[: counted - begin] = -100  # counted in the window before
        with torch.no_grad():
            logits = model(torch.tensor([tokens[begin:end]])).logits[0]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels >= 0).sum())
        counted = end
        if end == len(tokens) - 1:
            return total / count, count
    raise AssertionError("the last window reaches the end")


@pytest.mark.parametrize("stride", [None, 20, 1])
def test_the_loss_is_transformers(pair, tmp_path, stride):
    theirs, ours = pair
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    tokens = TokenDataset.open(find(str(tmp_path / "verse.txt")), tmp_path / "cache").split("all")
    score = evaluation.score_text(ours, ENCODING, tokens, stride)
    expected, count = loss_over_windows(theirs, np.asarray(tokens).tolist(), stride or ours.config.block_size)
    assert score.tokens == count == len(tokens) - 1
    assert score.loss == pytest.approx(expected, abs=1e-4)
    assert score.perplexity == pytest.approx(math.exp(expected), rel=1e-4)


def answers(model, item: dict) -> tuple[int, int]:
    """The endings with the lowest sum and the lowest mean of their tokens' losses."""
    sums, means = [], []
    context = ENCODING.encode_ordinary(item["ctx"])
    for ending in item["endings"]:
        tokens = context + ENCODING.encode_ordinary(" " + ending)
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, len(context) - 1 : -1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[len(context) :]), reduction="none")
        sums.append(losses.sum().item())
        means.append(losses.mean().item())
    return int(np.argmin(sums)), int(np.argmin(means))


def test_hellaswag_is_scored_as_on_top_of_transformers(pair, tmp_path):
    theirs, ours = pair
    by_sum, by_mean = zip(*(answers(theirs, item) for item in ITEMS))
    assert by_sum != by_mean
    for labels in (by_sum, by_mean, [item["label"] for item in ITEMS]):
        path = tmp_path / "items.jsonl"
        lines = [json.dumps({**item, "label": label}) for item, label in zip(ITEMS, labels)]
        path.write_text("\n".join(lines))
        score = hellaswag.score(ours, ENCODING, hellaswag.read(path), batch_size=3)
        assert score.items == len(ITEMS)
        assert score.right == sum(a == label for a, label in zip(by_sum, labels))
        assert score.right_norm == sum(a == label for a, label in zip(by_mean, labels))


def test_the_service_tells_lm_eval_what_transformers_does_of_a_vocabulary_of_ones_own(tmp_path):
    """The request is that of its local-completions: ids of the checkpoint's own tokenizer, echoed with logprobs."""
    folder = tmp_path / "own"
    shape = GPT2Config(block_size=48, vocab_size=OWN["280"].size, n_layer=2, n_head=2, n_embd=32)
    checkpoint.save(folder, jittered(shape), vocabulary=OWN["280"])
    ids = transformers.AutoTokenizer.from_pretrained(folder)("A summer's day, naïve café! 🙂")["input_ids"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    request = {"model": "own", "prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    with begun(tmp_path, "--checkpoint", str(folder)) as (_, url):
        told = http.post(f"{url}/v1/completions", json=request | {"echo": True}).json()["choices"][0]["logprobs"]
    n = len(ids)
    assert told["token_logprobs"][1:n] == pytest.approx(
        [row[id] for row, id in zip(expected.numpy(), ids[1:])], abs=1e-4
    )
    likeliest = [max(top.values()) for top in told["top_logprobs"][1:n]]  # by which it sees whether a text is greedy
    assert likeliest == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)
