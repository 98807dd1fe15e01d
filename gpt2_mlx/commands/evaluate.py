"""gpt2-mlx evaluate: how well a model predicts a text and answers HellaSwag."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import cli, inventory
from ..corpus import example_dataset, source
from ..files import finite
from ..model import GPT2
from ..pretrained import LoadConfig
from ..tokenizer import Vocabulary
from ..training import evaluation, hellaswag


@dataclass(frozen=True, kw_only=True)
class Evaluate(LoadConfig):
    """Score a model: its loss, perplexity and bits per byte on a text, its choices on HellaSwag."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Run (its best checkpoint), checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and computation; losses are always float32."""
    data: str | None = None
    """The text: tinyshakespeare, shakespeare, a file, a folder of files, or a folder of token shards, as for train."""
    split: Literal["train", "val", "test", "all"] = "test"
    """The part of the text: its first 80 %, the next 10 %, the last 10 %, or all."""
    stride: int | None = None
    """Tokens between the beginnings of two windows. Each token counts once. With a smaller stride it is predicted from
    more tokens, more than block_size - stride, but there are more windows to read. Default: block_size."""
    hellaswag: Path | None = None
    """A file of HellaSwag items, one JSON object per line with ctx, endings and label, such as hellaswag_val.jsonl."""
    batch_size: int = 8
    """Windows to score at once."""
    json: bool = False
    """Print one JSON object instead of lines."""


def main() -> None:
    flags = cli.parse(Evaluate)
    facts = score(flags)
    print(json.dumps(facts, ensure_ascii=False) if flags.json else "\n".join(_lines(facts)))


def score(flags: Evaluate) -> dict:
    """The scores that --json prints. Raises a ValueError where there is nothing to score or it does not fit."""
    if flags.data is None and flags.hellaswag is None:
        raise ValueError("there is nothing to score on: give --data, --hellaswag or both")
    if flags.batch_size < 1:
        raise ValueError(f"--batch-size is {flags.batch_size}; it must be at least 1")
    items = hellaswag.read(flags.hellaswag) if flags.hellaswag else []
    model, vocabulary = flags.load(flags.checkpoint)
    bits = (model.quantization or {}).get("bits")
    facts = {"checkpoint": flags.checkpoint, "dtype": flags.dtype, "bits": bits, "device": inventory.description()}
    if flags.data is not None:
        facts["text"] = _text_facts(flags, model, vocabulary)
    if items:
        result = hellaswag.score(model, vocabulary.encoding, items, flags.batch_size)
        facts["hellaswag"] = {**dataclasses.asdict(result), "acc_norm": result.acc_norm, "acc": result.acc}
    return facts


def _text_facts(flags: Evaluate, model: GPT2, vocabulary: Vocabulary) -> dict:
    text, T = source.find(flags.data), model.config.block_size
    content = example_dataset.find(text, vocabulary=vocabulary)
    score = evaluation.score_split(model, vocabulary.encoding, content, flags.split, flags.stride, flags.batch_size)
    facts = {
        "name": text.name,
        "note": text.note or content.note(T),
        "split": flags.split,
        "tokens": score.tokens,
        "bytes": score.bytes,
    }
    facts |= {"block_size": T, "stride": flags.stride or T}
    facts |= {"loss": score.loss, "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
    return {name: finite(value) for name, value in facts.items()}


def _lines(facts: dict) -> Iterator[str]:
    if "text" in facts:
        t = facts["text"]
        if t["note"]:
            yield f"NOTE: {t['note']}"
        split = "the whole text" if t["split"] == "all" else f"split {t['split']}"
        windows = f"windows of {t['block_size']} tokens every {t['stride']}"
        yield f"text:          {t['name']}, {split}: {t['tokens']:,} tokens, {t['bytes']:,} bytes, {windows}"
        yield f"loss:          {_number(t['loss'], '.4f')} nats per token"
        yield f"perplexity:    {_number(t['perplexity'], '.2f')}"
        yield f"bits per byte: {_number(t['bits_per_byte'], '.4f')}"
    if "hellaswag" in facts:
        h = facts["hellaswag"]
        yield f"hellaswag:     acc_norm {h['acc_norm']:.4f} ({h['right_norm']} of {h['items']}), acc {h['acc']:.4f}"


def _number(number: float | None, form: str) -> str:
    return "not finite" if number is None else format(number, form)
