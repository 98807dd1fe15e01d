import pytest

from gpt2_mlx import device
from gpt2_mlx.training import memory, plan
from gpt2_mlx.training.config import TrainConfig


def settings(**fields) -> TrainConfig:
    return TrainConfig(**{"preset": "tiny", **fields}).resolved(on_gpu=False)


def test_the_same_windows_in_ever_smaller_micro_batches_then_with_activations_made_anew():
    ways = list(plan.ways(settings(batch_size=6, grad_accum_steps=2)))
    taken = [(way.batch_size, way.grad_accum_steps, way.grad_checkpoint) for way in ways]
    sizes = [(6, 2), (3, 4), (2, 6), (1, 12)]
    assert taken == [(*size, remade) for remade in (False, True) for size in sizes]
    assert all(way.grad_checkpoint for way in plan.ways(settings(grad_checkpoint=True)))


@pytest.mark.cpu("a GPU's memory is not planned to the last byte")
def test_the_first_way_that_fits_is_taken(monkeypatch):
    config = settings(preset="gpt2", batch_size=4)
    ways = list(plan.ways(config))
    for i in (0, 1, 3):
        monkeypatch.setattr(device, "memory", lambda sharing=1, i=i: memory.peak(ways[i]))
        assert plan.choose(config, given=False) == next(way for way in ways if memory.peak(way) <= memory.peak(ways[i]))
    assert plan.choose(config, given=False).batch_size < 4
    with pytest.raises(
        ValueError, match=r"gpt2 with --batch-size 4 does not fit: it needs \d+\.\d\d GB \(weights 0\.50, "
    ):
        plan.choose(config, given=True)
    monkeypatch.setattr(device, "memory", lambda sharing=1: 1e9)
    with pytest.raises(ValueError, match="with --batch-size 1 --grad-checkpoint .* this machine has 1.0 GB for it"):
        plan.choose(config, given=False)


def test_tinys_recipe_is_left_as_it_is_where_it_fits(monkeypatch):
    monkeypatch.setattr(device, "memory", lambda sharing=1: 2e9)
    assert plan.choose(settings(), given=False) == settings()
