"""OpenBLAS for MLX's other programs too, without gpt2_mlx's own kernel for few rows; to be imported before mlx.

`python -m benchmarks.contestants.openblas MODULE ARG...` runs a module so.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("blas", Path(__file__).parents[2] / "gpt2_mlx" / "blas.py")
_blas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_blas)
_blas._SOURCE = Path(__file__).with_name("openblas.cpp")
_blas.preload()

if __name__ == "__main__":
    sys.argv.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
