"""gpt2-mlx replay: an answer of the service again, from its receipt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import cli, pretrained
from ..generation.engine import Engine
from ..pretrained import LoadConfig
from ..serving import receipts
from ..serving.answers import ReceiptText
from ..serving.choice import Choice
from ..serving.submission import Job


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Draw an answer of the service again, alone, and compare. Ends with status 0 if it is the same, with 1 if it
    differs, and with 2 if it cannot be drawn."""

    receipt: Annotated[Path, tyro.conf.Positional]
    """File with the receipt in JSON."""
    checkpoint: str | None = None
    """Where the checkpoint lies now. Default: where the receipt says."""


def main() -> None:
    flags = cli.parse(Replay)
    receipt = receipts.read(flags.receipt)
    folder = pretrained.find(flags.checkpoint or receipt.checkpoint)
    if (found := receipts.sha256(folder)) != receipt.sha256:
        raise ValueError(f"{folder} has the hash {found}; it must be that of the receipt, {receipt.sha256}")
    made = receipt.versions
    how = LoadConfig(device=made.device, dtype=made.dtype, quantize=made.quantize)
    model, vocabulary = how.load(folder)
    answered = receipts.answered(receipt, vocabulary, folder, model.config.block_size)
    engine = Engine(model, 1, encoding=vocabulary.encoding)
    texts = [draw(engine, job, choice) for job, choice in answered.choices(vocabulary.encoding)]
    difference = receipts.difference(receipt.texts, texts)
    here = dict(receipts.versions(how))
    others = [f"{name} was {was} and is {here[name]}" for name, was in made if was != here[name]]
    print("; ".join([f"it differs: {difference}" if difference else "the same answer", *others]))
    raise SystemExit(1 if difference else 0)


def draw(engine: Engine, job: Job, choice: Choice) -> ReceiptText:
    """Draw a text. Raises a ValueError where its prompt or its constraint cannot be followed."""
    id = engine.add(*job)
    while engine.has_work:
        for output in engine.step():
            if output.failure:
                raise ValueError(output.failure)
            if choice.take(output).finish_reason:
                engine.cancel(id)
    return choice.record
