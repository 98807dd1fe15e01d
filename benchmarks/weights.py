"""Weights to measure with, made here: nothing is fetched."""

from pathlib import Path

from gpt2_mlx import checkpoint
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2


def save_random(config: GPT2Config, folder: Path) -> Path:
    """Make a checkpoint folder of random weights, which mlx_lm and transformers open, too."""
    checkpoint.save(folder, GPT2(config))
    return folder
