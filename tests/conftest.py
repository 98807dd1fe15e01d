import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 means float32 where results are compared

import hypothesis
import pytest

import gpt2_mlx  # noqa: F401  (before mlx: it brings the BLAS)
from gpt2_mlx import device
from gpt2_mlx.config import GPT2Config

hypothesis.settings.register_profile("no_clock", deadline=None)
hypothesis.settings.load_profile("no_clock")


@pytest.fixture(autouse=True, scope="session")
def on_the_cpu():
    device.select("cpu")


@pytest.fixture
def small() -> GPT2Config:
    """A GPT-2 for quick tests: every dimension is another number."""
    return GPT2Config(block_size=10, vocab_size=61, n_layer=3, n_head=2, n_embd=12)
