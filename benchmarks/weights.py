"""Weights to measure with, made here: nothing is fetched."""

from pathlib import Path

from gpt2_mlx import adapter, checkpoint, lora, pretrained
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2


def save_random(config: GPT2Config, folder: Path) -> Path:
    """Make a checkpoint folder of random weights, which mlx_lm and transformers open, too."""
    checkpoint.save(folder, GPT2(config))
    return folder


def save_adapter(base: Path, folder: Path, rank: int = 8) -> Path:
    """Make the folder of an adapter of a checkpoint, of all its projections. As one that begins to learn it adds zeros,
    which take as long as other numbers."""
    model = pretrained.load(base)
    facts = {"base": str(base), "sha256": adapter.fingerprint(base), "layers": model.config.n_layer}
    lora.add(model, lora.LoRA(rank=rank, alpha=2.0 * rank, dropout=0, targets=tuple(lora.TARGETS), **facts), seed=rank)
    checkpoint.save(folder, model)
    return folder
