"""gpt2-mlx replay: an answer of the service again, from its receipt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import cli, pretrained
from ..generation.adapters import Adapters
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
    adapter: str | None = None
    """Where the adapter lies now, if one answered. Default: where the receipt says."""


def main() -> None:
    flags = cli.parse(Replay)
    receipt = receipts.read(flags.receipt)
    folder, folders = _found(flags.checkpoint or receipt.checkpoint, receipt.sha256), {}
    if receipt.adapter:
        folders = {"adapter": _found(flags.adapter or receipt.adapter.folder, receipt.adapter.sha256)}
    elif flags.adapter:
        raise ValueError(f"--adapter is {flags.adapter}, but no adapter answered")
    made = receipt.versions
    how = LoadConfig(device=made.device, dtype=made.dtype, quantize=made.quantize)
    model, _ = how.load(folder)
    adapters, vocabulary = Adapters(model, folders), pretrained.vocabulary(folders.get("adapter", folder))
    answered = receipts.answered(receipt, vocabulary, folder, adapters.block_sizes[-1])
    engine = Engine(model, 1, encoding=vocabulary.encoding, adapters=adapters)
    texts = [draw(engine, job, choice, len(adapters)) for job, choice in answered.choices(vocabulary.encoding)]
    difference = receipts.difference(receipt.texts, texts)
    here = dict(receipts.versions(how))
    others = [f"{name} was {was} and is {here[name]}" for name, was in made if was != here[name]]
    print("; ".join([f"it differs: {difference}" if difference else "the same answer", *others]))
    raise SystemExit(1 if difference else 0)


def _found(source: str, sha256: str) -> Path:
    """The folder of what a receipt tells of. Raises a ValueError where it is another one now."""
    folder = pretrained.find(source)
    if (found := receipts.sha256(folder)) != sha256:
        raise ValueError(f"{folder} has the hash {found}; it must be that of the receipt, {sha256}")
    return folder


def draw(engine: Engine, job: Job, choice: Choice, adapter: int = 0) -> ReceiptText:
    """Draw a text. Raises a ValueError where its prompt or its constraint cannot be followed."""
    id = engine.add(*job, adapter=adapter)
    while engine.has_work:
        for output in engine.step():
            if output.failure:
                raise ValueError(output.failure)
            if choice.take(output).finish_reason:
                engine.cancel(id)
    return choice.record
