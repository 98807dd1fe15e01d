"""Prompts and answers: how they are read, packed and counted."""

import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import trained
from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx import GPT2, device, pretrained, template, tokenizer
from gpt2_mlx.corpus import example_dataset, examples
from gpt2_mlx.corpus.examples import Examples
from gpt2_mlx.corpus.loader import IGNORE
from gpt2_mlx.corpus.packing import ExampleLoader, PackedWindows
from gpt2_mlx.corpus.source import Source
from gpt2_mlx.training import evaluation
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.step import Step

BYTES = tokenizer.of_merges([])
EOT = BYTES.eot


def written(folder: Path, *lines: object, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def talk(*contents: str) -> dict[str, list]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, contents)]}


def read(*paths: Path) -> Examples:
    return examples.read(Source("some", paths), BYTES)


def ids(text: str) -> list[int]:
    return BYTES.encoding.encode_ordinary(text)


def test_a_completion_follows_its_prompt_and_an_end_follows_it(tmp_path):
    found = read(written(tmp_path, pair("2+2=", "4"), "", {"id": 7, **pair("", " so")}))
    first, second = [*ids("2+2="), *ids("4"), EOT], [EOT, *ids(" so"), EOT]  # an empty prompt begins a document
    assert found.tokens.tolist() == first + second
    assert found.learnt.tolist() == [False] * 4 + [True] * 2 + [False] + [True] * 4
    assert found.ends.tolist() == [len(first), len(first) + len(second)]


def test_every_answer_of_a_conversation_is_learnt(tmp_path):
    found = read(written(tmp_path, talk("Hi", "Yes.", "Sure?", "No.")))
    parts = [("user:\nHi\n\nassistant:\n", 0), ("Yes.", 1), ("user:\nSure?\n\nassistant:\n", 0), ("No.", 1)]
    expected = [(id, is_answer) for text, is_answer in parts for id in [*ids(text), *([EOT] * is_answer)]]
    assert list(zip(found.tokens.tolist(), found.learnt.tolist())) == expected


def test_the_tokens_do_not_depend_on_what_is_tokenized_at_once(tmp_path, monkeypatch):
    path = written(tmp_path, *(pair(f"{i}+1=", str(i + 1)) for i in range(7)))
    whole = read(path)
    monkeypatch.setattr(examples, "_AT_ONCE", 2)
    for one, other in zip(vars(whole).values(), vars(read(path)).values()):
        assert (one == other).all()


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt"', "pairs.jsonl, line 2 is not JSON"),
        ({"prompt": "a"}, "line 2 has no string 'completion': "),
        (pair("a", 1), "line 2 has no string 'completion': "),
        ([1], "line 2 has no string 'prompt': "),
        ({"text": "a"}, "line 2 has 'text', but the first line has 'prompt' and 'completion': keep to one kind"),
        (talk("a", "b"), "line 2 has 'messages', but the first line has 'prompt' and 'completion'"),
        (pair("a", "b<|endoftext|>"), r"line 2 holds <|endoftext|>, which is put after each completion: leave it out"),
    ],
)
def test_a_line_that_is_no_example_is_shown(line, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(written(tmp_path, pair("a", "b"), line))


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "has no list 'messages' with at least one message"),
        (["a"], "has a message 0 that is no object of a role and a content, and of no more"),
        ([{"role": "user", "content": "a", "weight": 0}], "has a message 0 that is no object of a role and a content"),
        ([{"role": "tool", "content": "a"}], "has a message 0 of role 'tool'; allowed are system, user, assistant"),
        ([{"role": "user", "content": ["a"]}], "has a message 0 whose content is no string"),
        ([{"role": "user", "content": "a"}], "ends with no message of the assistant, so there is no answer to learn"),
        (talk("a", "<|endoftext|>")["messages"], "message 1 holds <|endoftext|>, which ends an answer"),
    ],
)
def test_messages_that_cannot_be_learnt_are_shown(messages, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(written(tmp_path, talk("a", "b"), {"messages": messages}))


def test_texts_and_examples_are_told_apart_by_their_first_line(tmp_path):
    def kind(*lines: object, name: str = "some.jsonl"):
        return examples.kind(Source("some", (written(tmp_path, *lines, name=name),)))

    assert kind("", pair("a", "b")) == ("prompt", "completion") and kind(talk("a", "b")) == ("messages",)
    assert kind({"text": "a", **pair("a", "b")}) is kind("no JSON") is kind() is kind("a", name="a.txt") is None
    paths = written(tmp_path, pair("a", "b"), name="a.jsonl"), written(tmp_path, "a", name="b.txt")
    with pytest.raises(ValueError, match="b.txt is no JSON lines, but .*a.jsonl is, of prompts and answers"):
        read(*paths)


def made(lengths: list[int], learnt: int = 2) -> Examples:
    """Examples of such lengths whose tokens are all different; the last ones are learnt."""
    is_learnt = np.concatenate([np.arange(n) >= n - learnt for n in lengths])
    return Examples(np.arange(sum(lengths), dtype=np.uint16), is_learnt, np.cumsum(lengths))


@given(st.lists(st.integers(3, 14), min_size=1, max_size=40), st.integers(4, 12), st.integers(1, 3))
def test_each_example_that_fits_is_whole_in_one_window(lengths, block_size, batch_size):
    packed = PackedWindows(made(lengths), block_size)
    fitting = [(int(end) - n, n) for n, end in zip(lengths, np.cumsum(lengths)) if n <= block_size + 1]
    seen, predicted = [], []
    for batch in packed.batches(batch_size):
        assert all(array.shape == (batch_size, block_size) and array.dtype == np.int32 for array in batch)
        for tokens, targets, starts in zip(*batch):
            if (targets == IGNORE).all():
                continue  # it fills the batch up
            for start in np.unique(starts):
                own = starts == start
                assert own[start : start + own.sum()].all()  # in one piece, which begins there
                if (counts := own & (targets != IGNORE)).any():
                    seen.append((int(tokens[start]), int(own.sum()) + 1))
                    assert (targets[counts] == tokens[counts] + 1).all()
                    assert counts.sum() == 2 and counts[start + own.sum() - 2 :][:2].all()
                    predicted += targets[counts].tolist()
    assert sorted(seen) == fitting
    assert sorted(predicted) == sorted(packed.targets.tolist())
    assert len(packed) <= 2 * sum(n - 1 for _, n in fitting) / block_size + 1  # no two windows would fit into one


def test_an_epoch_reads_each_window_once_whatever_was_read_before():
    packed = PackedWindows(made([9] * 20), 8)
    loader = ExampleLoader(packed, 4, seed=3)
    order = [loader.micro_batch(number)[0][:, 0].tolist() for number in range(10)]
    for epoch in (order[:5], order[5:]):
        assert sorted(np.ravel(epoch).tolist()) == list(range(0, 180, 9))
    assert order[:5] != order[5:]
    assert [ExampleLoader(packed, 4, 3).micro_batch(n)[0][:, 0].tolist() for n in reversed(range(10))] == order[::-1]
    assert ExampleLoader(packed, 4, seed=4).micro_batch(0)[0][:, 0].tolist() != order[0]


def by_hand(model: GPT2, example: Examples) -> tuple[float, int]:
    """The summed loss of an example's answers, alone, in float64, and their number."""
    logits = np.array(model(mx.array(example.tokens[None, :-1].astype(np.int32))), np.float64)[0]
    log_total = np.log(np.exp(logits).sum(-1))
    losses = log_total - logits[np.arange(len(logits)), example.tokens[1:]]
    return losses[example.learnt[1:]].sum(), int(example.learnt[1:].sum())


@pytest.fixture
def sums(tmp_path) -> example_dataset.ExampleDataset:
    lines = [pair(f"{i}*{i}=", f"{i * i}, of course"[: 1 + i % 9]) for i in range(40)]
    return example_dataset.ExampleDataset.open(Source("sums", (written(tmp_path, *lines, pair("x" * 40, "y")),)), BYTES)


CONFIG = TrainConfig(vocab="bytes", n_layer=2, n_head=2, n_embd=16, block_size=24, dropout=0.0).resolved(False)


@pytest.mark.parametrize("streams", [1, 2])
def test_the_loss_is_that_of_the_answers_by_hand(sums, streams):
    model = GPT2(CONFIG.model_config(), seed=1)
    model.update({"wte": {"weight": 20 * model.wte.weight}, "wpe": {"weight": 20 * model.wpe.weight}})
    part = sums.examples.part(0, 32)  # the train split
    total, count = map(sum, zip(*(by_hand(model, part.part(i, i + 1)) for i in range(32))))
    score = evaluation.score_split(model, BYTES.encoding, sums, "train", batch_size=streams)
    assert score.tokens == count and score.loss == pytest.approx(total / count, rel=1e-5)
    answers = sum(len(f"{i * i}, of course"[: 1 + i % 9]) for i in range(32))
    assert score.bytes == answers  # the end spells nothing
    n = sums.per_pass(24) // 24
    assert n < 32 / 2  # several share a window
    epoch = tuple(map(mx.array, sums.loader(n, 24, seed=0).micro_batch(0)))
    loss, _, _ = Step(CONFIG, model, device.streams(2)[:streams])([epoch], 0.0)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_splits_are_of_whole_examples_and_what_is_too_long_is_told(sums):
    assert [len(sums._part(name)) for name in ("train", "val", "test", "all")] == [32, 4, 5, 41]
    assert sums.note(24) == "1 of 41 examples are left out: they have more than 25 tokens, up to 42"
    assert sums.note(41) == ""
    assert len(sums.evaluation("test", 1, 24)[1]) < len(sums.evaluation("test", 1, 41)[1])
    with pytest.raises(ValueError, match="none is left for train that fits into --block-size 2; the longest has 42"):
        sums.check_length(2)
    _, predicted = sums.evaluation("val", 2, 24, limit=1)  # one example at least
    assert predicted.tolist() == [*ids("1024, of course"[: 1 + 32 % 9]), EOT]


def test_train_and_evaluate_with_conversations(tmp_path):
    """All of it: a vocabulary made of them, a run, its checkpoint's template, the same test loss again."""
    lines = [talk(f"What is {i} and {i}?", f"It is {2 * i}.") for i in range(60)]
    data = written(tmp_path, *lines, talk("a" * 900, "b"))
    flags = {"vocab": "270", "block-size": 64, "max-steps": 6, "eval-interval": 3, "save-interval": 3}
    done = trained.train(data, tmp_path / "run", **flags)
    assert done.returncode == 0, done.stderr
    samples = re.findall("--- sample at step 6\n(.*\n.*)", done.stdout)
    assert samples and set(samples) == {"user:\nWhat is 48 and 48?"}  # the first of the val split
    assert "NOTE: 1 of 61 examples are left out: they have more than 65 tokens" in done.stdout
    assert re.search(r"text:   pairs, 48 train \+ 6 val \+ 7 test examples; [\d,]+ of [\d,]+ train", done.stdout)
    folder = tmp_path / "run" / "best"
    assert pretrained.vocabulary(folder).template == template.OURS
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    test = next(event for event in events if event["event"] == "test")
    model, vocabulary = pretrained.load(folder), pretrained.vocabulary(folder)
    content = example_dataset.find(Source("pairs", (data,)), vocabulary=vocabulary)
    score = evaluation.score_split(model, vocabulary.encoding, content, "test")
    assert score.loss == pytest.approx(test["loss"], rel=1e-5)
    assert score.bits_per_byte == pytest.approx(test["bits_per_byte"], rel=1e-5)
    shutil.copytree(tmp_path / "run", tmp_path / "again", symlinks=True)
    shutil.rmtree(tmp_path / "again" / "step-00000006")
    resumed = trained.train(data, tmp_path / "again", "--resume", **flags)
    assert resumed.returncode == 0 and "from step 3 to step 6" in resumed.stdout, resumed.stderr
    ends = [(tmp_path / run / "step-00000006" / "model.safetensors").read_bytes() for run in ("run", "again")]
    assert ends[0] == ends[1]
    refused = trained.train(data, tmp_path / "other", **flags, without="pairs.jsonl:1")
    assert refused.returncode == 2 and "holds prompts and answers, not texts" in refused.stderr
