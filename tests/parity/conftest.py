from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import GPT2
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams

# Every dimension is another number; the last has the whole vocabulary, for tests that begin with a text.
SHAPES = {
    "narrow": {"n_positions": 24, "vocab_size": 61, "n_layer": 3, "n_head": 2, "n_embd": 12},
    "one layer": {"n_positions": 40, "vocab_size": 300, "n_layer": 1, "n_head": 1, "n_embd": 20},
    "text": {"n_positions": 64, "vocab_size": 50257, "n_layer": 2, "n_head": 4, "n_embd": 64},
}


@pytest.fixture(scope="session")
def foreign(tmp_path_factory) -> Callable[..., tuple]:
    """Makes a random GPT-2 with transformers and saves it: `foreign(n_layer=2, ...)` -> (its model, the folder).

    Fields are those of transformers.GPT2Config, `seed` what the weights follow from. No weight is at its initial zero
    or one, and they are large enough for the likeliest token to stand out.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(seed: int = 0, **fields) -> tuple[transformers.GPT2LMHeadModel, Path]:
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        folder = tmp_path_factory.mktemp("foreign")
        model.save_pretrained(folder)
        return model, folder

    return make


def some_tokens(model: GPT2, n_rows: int = 2) -> np.ndarray:
    """(n_rows, block_size) token ids."""
    return np.random.RandomState(0).randint(0, model.config.vocab_size, (n_rows, model.config.block_size))


def logits(model: GPT2, tokens: np.ndarray) -> np.ndarray:
    return np.array(model(mx.array(tokens)).astype(mx.float32))


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def greedy(model: GPT2, prompt: list[int], n: int) -> list[int]:
    """The n likeliest tokens, one after the other, as the engine draws them."""
    engine = Engine(model, n_slots=1)
    engine.add(prompt, SamplingParams(temperature=0, max_tokens=n, seed=0))
    ids = []
    while engine.has_work:
        ids += [token.id for output in engine.step() for token in output.tokens]
    return ids


def torch_greedy(model, prompt: list[int], n: int) -> list[int]:
    import torch

    tokens = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": n, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)[0, len(prompt) :].tolist()
