"""One file per question, each measured beside its peers in the same run: `python -m benchmarks.tokenize`."""

import os

ENVIRONMENT = dict(os.environ)  # before gpt2_mlx adds its own to it; what each contestant starts with
