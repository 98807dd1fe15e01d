"""mlx_lm's own generation, with the same OpenBLAS as ours."""

from collections.abc import Callable, Iterator

from . import openblas, times  # noqa: F401  openblas comes before mlx

import mlx.core as mx  # isort: skip
from mlx_lm.generate import generate_step
from mlx_lm.utils import load


def decode(folder: str, prompt: list[int], n: int, dtype: str, device: str) -> Callable[[], dict]:
    if device == "cpu":
        mx.set_default_device(mx.cpu)
    model, _ = load(folder)
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())

    def generate(n: int) -> Iterator[int]:
        return (int(id) for id, _ in generate_step(mx.array(prompt), model, max_tokens=n))

    times(generate(2))
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return lambda: times(generate(n)) | ({"peak_gb": mx.get_peak_memory() / 1e9} if on_gpu else {})
