"""The frozen base of an adapter: in the run's type or rounded, with the adapter that learns in its place."""

from pathlib import Path

from .. import adapter, lora, pretrained
from ..model import GPT2
from . import precision
from .config import TrainConfig


def lower_base(model: GPT2, config: TrainConfig) -> None:
    """Bring a model into the types of an adapter's base, where resolved settings ask for one. Nothing is evaluated.

    The blocks get the type that they compute in, and their matrices the bits of --quantize. Embeddings stay float32, as
    in `precision.lowered`.
    """
    if not config.lora_rank:
        return
    model.update(precision.lowered(model.parameters(), config.dtype))
    if config.quantize:
        model.quantize(config.quantize, head=False)


def adapt(model: GPT2, config: TrainConfig, base: tuple[str, str] = ("", "")) -> None:
    """Freeze such a base and add an adapter, where resolved settings ask for one.

    `base` is the name of the model and the SHA-256 of its weights.
    """
    if not config.lora_rank:
        return
    shape = {"rank": config.lora_rank, "alpha": config.lora_alpha, "dropout": config.lora_dropout}
    shape |= {"layers": config.lora_layers, "targets": config.lora_targets}
    frozen = {"quantize": config.quantize, "dtype": config.dtype}
    lora.add(model, lora.LoRA(**shape, **frozen, base=base[0], sha256=base[1]), config.seed)


def base_of(config: TrainConfig, init: Path | None, begun: Path | None) -> tuple[str, str]:
    """The name of the base and the SHA-256 of its weights: those that a checkpoint tells, if a run goes on from one.

    `init` is the folder of the weights; only the first process has one, and only it needs to know.
    """
    if not config.lora_rank or init is None:
        return "", ""
    if begun:
        return adapter.base(begun)
    if adapter.is_in(init):
        raise ValueError(f"--init-from is {config.init_from}, an adapter; the base of another one must be no adapter")
    return pretrained.lasting_name(config.init_from, init), adapter.fingerprint(init)
