"""What the README says of the defaults is what the code has."""

from pathlib import Path

import pytest

from gpt2_mlx.config import PRESETS
from gpt2_mlx.model import GPT2
from gpt2_mlx.training.config import TrainConfig

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_of_presets(preset):
    shape, recipe = PRESETS[preset], TrainConfig(preset=preset).resolved(on_gpu=False)
    row = [
        preset,
        shape.n_layer,
        shape.n_head,
        shape.n_embd,
        shape.block_size,
        f"{GPT2(shape).n_params / 1e6:.1f}M",
        recipe.optimizer,
        recipe.max_steps,
        recipe.batch_size,
        f"{recipe.learning_rate:g}",
        f"{recipe.weight_decay:g}",
    ]
    assert f"| {' | '.join(map(str, row))} |" in README


def test_auto_follows_the_device():
    assert TrainConfig().resolved(on_gpu=False).preset == "tiny"
    assert TrainConfig().resolved(on_gpu=True).preset == "baby"
