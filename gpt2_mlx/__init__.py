"""GPT-2, written natively for Apple's MLX."""

from . import blas

blas.preload()  # before anything can import mlx
