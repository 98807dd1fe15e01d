"""OpenBLAS for MLX's other programs too, without gpt2_mlx's own kernel for few rows; to be imported before mlx.

`python -m benchmarks.contestants.openblas DEVICE MODULE ARG...` runs a module so, on the device "gpu" or "cpu".
"""

import importlib.util
import os
import runpy
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("blas", Path(__file__).parents[2] / "gpt2_mlx" / "blas.py")
_blas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_blas)
os.environ["GPT2_MLX_BLAS"] = "openblas"
_blas.preload()

if __name__ == "__main__":
    import mlx.core as mx

    mx.set_default_device(getattr(mx, sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
