"""How large an error may be: as large as this machine's products and a type's rounding explain."""

import functools

import mlx.core as mx
import numpy as np

from .finding import difference

ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # of one number, relative to it


@functools.cache
def product_error() -> float:
    """The error of one float32 matrix product on this machine: about 1e-6, or 1e-3 where MLX computes it in TF32."""
    a, b = np.random.RandomState(0).standard_normal((2, 512, 512)).astype(np.float32)
    return difference(mx.matmul(mx.array(a), mx.array(b)), a.astype(np.float64) @ b)


def tolerance(dtype: str = "float32") -> float:
    """The error that is allowed after many products in a row. In 16 bits it is eight roundings."""
    exact = min(max(2e-5, 50 * product_error()), 0.03)
    return exact if dtype == "float32" else max(exact, 8 * ROUNDING[dtype])
