"""GPT-2, written natively for Apple's MLX.

model, tokenizer = gpt2_mlx.load("checkpoints/tinyshakespeare-tiny")
text = gpt2_mlx.generate(model, tokenizer, "KING RICHARD II:", max_tokens=50, seed=1)
"""

import os
import time

from . import blas

__version__ = "0.1.0"
STARTED = time.perf_counter()  # about when the process started, from which --minutes counts

blas.preload()  # before anything can import mlx
os.environ.setdefault("MLX_CUDA_GRAPH_CACHE_SIZE", "4000")  # likewise; a long run meets more than the default's shapes

from pathlib import Path

import tiktoken

from . import device, pretrained
from .config import GPT2Config
from .generation.text import generate, stream
from .model import GPT2
from .pretrained import LoadConfig

__all__ = ["GPT2", "GPT2Config", "generate", "load", "stream"]


def load(
    source: str | Path, dtype: str = LoadConfig.dtype, quantize: int | None = LoadConfig.quantize
) -> tuple[GPT2, tiktoken.Encoding]:
    """The model and the tokenizer of a run (its best checkpoint), a checkpoint folder, or a hub model.

    Args:
        source: a path; gpt2, gpt2-medium, gpt2-large, gpt2-xl; or owner/name on the Hugging Face hub.
        dtype: what to compute in: "float32", "bfloat16", "float16", or "auto", float16 on a GPU and float32 on a CPU.
        quantize: 8 or 4 bits a weight.

    Raises:
        ValueError: there is none, it cannot be fetched, or it is broken; the message names what is.
    """
    blas.check()
    folder = pretrained.find(source)
    return pretrained.load(folder, device.dtype(dtype), quantize), pretrained.vocabulary(folder).encoding
