from collections.abc import Callable
from pathlib import Path

import pytest

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
