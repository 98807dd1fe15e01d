"""Mixed precision (Micikevicius et al. 2018): which weights compute in fewer bits, and float16's loss scale."""

import mlx.core as mx
from mlx.utils import tree_map_with_path

FIRST_SCALE = 2.0**8  # for the loss summed over tokens; their mean loss would need thousands of times as much
GROWTH_STEPS = 2000  # steps in a row without an overflow before the scale is doubled


def lowered(parameters: dict, dtype: str) -> dict:
    """The parameters, with those of the blocks in `dtype`.

    The embeddings stay float32, and with them the head and the sum that runs through the blocks: the embeddings'
    gradients add up over all tokens of a batch, and a sum in bfloat16 stops growing at 256 times its summands.
    """

    def lower(name: str, p: mx.array) -> mx.array:
        return p if name.startswith(("wte", "wpe")) else p.astype(getattr(mx, dtype))

    return tree_map_with_path(lower, parameters)


def first_scale(dtype: str) -> float:
    """The loss scale of a run's first step. Without one, gradients below 6e-8 would become 0 in float16."""
    return FIRST_SCALE if dtype == "float16" else 1.0


def next_scale(dtype: str, scale: float, steps: int, taken: bool) -> tuple[float, int]:
    """The loss scale after a step, and the number of steps in a row that had no overflow at this scale.

    An overflow makes a gradient infinite, so that the step is not taken; then the scale is halved, but not below 1.
    """
    if dtype != "float16":
        return scale, steps
    if not taken:
        return max(1.0, scale / 2), 0
    return (scale * 2, 0) if steps + 1 == GROWTH_STEPS else (scale, steps + 1)
