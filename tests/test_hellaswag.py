import json

import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import GPT2, GPT2Config, tokenizer
from gpt2_mlx.training import hellaswag
from gpt2_mlx.training.hellaswag import Item

ENCODING = tokenizer.load()
ITEMS = [
    Item(
        "A man is sitting on a roof. he", ("sings.", "is using wrap to wrap a pair of skis.", "left", "rips tiles"), 2
    ),
    Item("Two dogs", ("bark at the moon, at the mailman and at each other", "fly", "swim home", "read"), 0),
    Item("The cook adds salt. Then the cook tastes the soup and", ("smiles.", "is a roof.", "of", "the the"), 3),
    Item("Rain", ("falls", "is dry", "sings a very long song about the sun and the sea", "eats"), 1),
]


@pytest.fixture(scope="module")
def model() -> GPT2:
    """Its predictions are far from each other."""
    model = GPT2(GPT2Config(block_size=24, n_layer=2, n_head=2, n_embd=32), seed=1)
    model.wte.weight = 10 * model.wte.weight
    return model


def ending_losses(model: GPT2, context: str, ending: str) -> list[float]:
    """The loss of each of an ending's tokens, one forward pass a token."""
    tokens, n = ENCODING.encode_ordinary(context), len(ENCODING.encode_ordinary(context))
    tokens = tokens + ENCODING.encode_ordinary(" " + ending)
    losses = []
    for at in range(n, len(tokens)):
        logits = model(mx.array([tokens[:at]]))[0, -1]
        losses.append((mx.logsumexp(logits) - logits[tokens[at]]).item())
    return losses


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_answer_is_the_ending_with_the_lowest_loss(model, batch_size):
    losses = [[ending_losses(model, item.context, ending) for ending in item.endings] for item in ITEMS]
    by_sum = [int(np.argmin([sum(one) for one in each])) for each in losses]
    by_mean = [int(np.argmin([np.mean(one) for one in each])) for each in losses]
    assert by_sum != by_mean
    for answers, expected in ((by_sum, "right"), (by_mean, "right_norm")):
        for flipped in range(len(ITEMS) + 1):  # the first so many labelled as the model answers, the others otherwise
            labels = [a if i < flipped else (a + 1) % 4 for i, a in enumerate(answers)]
            items = [Item(item.context, item.endings, label) for item, label in zip(ITEMS, labels)]
            assert getattr(hellaswag.score(model, ENCODING, items, batch_size), expected) == flipped


def test_the_share_of_right_answers():
    score = hellaswag.HellaSwagScore(items=8, right=2, right_norm=4)
    assert (score.acc, score.acc_norm) == (0.25, 0.5)


def test_what_is_too_long_loses_its_oldest_tokens(model):
    short = [Item("tastes the soup and then", ITEMS[2].endings, 0)]
    n = model.config.block_size - len(ENCODING.encode_ordinary(short[0].context)) + 1
    filler = ENCODING.decode(ENCODING.encode_ordinary(" word" * (3 * n)))
    rows = hellaswag.rows(ENCODING, Item(filler + " " + short[0].context, short[0].endings, 0), model.config.block_size)
    for (tokens, targets), ending in zip(rows, short[0].endings):
        assert len(tokens) == len(targets) == model.config.block_size
        expected = ENCODING.encode_ordinary(" " + ending)
        assert targets[targets != -1].tolist() == expected
        assert (targets[-len(expected) :] == expected).all()


def published(**fields) -> str:
    item = {"ind": 24, "activity_label": "Roof", "ctx_a": "A man.", "ctx_b": "he", "ctx": "A man. he", "split": "val"}
    item |= {"endings": ["a", "b", "c", "d"], "label": 3, "source_id": "x"}
    return json.dumps(
        {name: value for name, value in {**item, **fields}.items() if value is not None}, ensure_ascii=False
    )


def test_reads_the_published_format(tmp_path):
    path = tmp_path / "val.jsonl"
    other = published(label="1", ctx="naïve\u2028line")
    path.write_text(f"{published()}\n\n{other}\n", encoding="utf-8")
    first, second = hellaswag.read(path)
    assert first == Item("A man. he", ("a", "b", "c", "d"), 3)
    assert (second.label, second.context) == (1, "naïve\u2028line")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ("[]", "line 2: not a JSON object"),
        (published(label=4), r"line 2: label is 4; it must lie in \[0, 3\]"),
        (published(label=None), "line 2: label is None"),
        (published(ctx=""), "line 2: ctx is ''"),
        (published(endings=["one"]), "line 2: endings is"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, line, message):
    path = tmp_path / "val.jsonl"
    path.write_text(f"{published()}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        hellaswag.read(path)


def test_a_file_without_items_is_refused(tmp_path):
    (tmp_path / "val.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no items"):
        hellaswag.read(tmp_path / "val.jsonl")
