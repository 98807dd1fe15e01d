"""GPT-2, written natively for Apple's MLX.

model, tokenizer = gpt2_mlx.load("checkpoints/tinyshakespeare-tiny")
text = gpt2_mlx.generate(model, tokenizer, "KING RICHARD II:", max_tokens=50, seed=1)
"""

import os

from . import blas

blas.preload()  # before anything can import mlx
os.environ.setdefault("MLX_CUDA_GRAPH_CACHE_SIZE", "4000")  # likewise; a long run meets more than the default's shapes

from pathlib import Path

import tiktoken

from . import checkpoint
from . import tokenizer as _tokenizer
from .config import GPT2Config
from .generation.text import generate, stream
from .model import GPT2

__all__ = ["GPT2", "GPT2Config", "generate", "load", "stream"]


def load(path: str | Path) -> tuple[GPT2, tiktoken.Encoding]:
    """The model and the tokenizer of a run (its best checkpoint) or of a checkpoint folder.

    Raises:
        ValueError: there is none, or it is broken; the message names what is.
    """
    return checkpoint.load(checkpoint.resolve(Path(path))), _tokenizer.load()
