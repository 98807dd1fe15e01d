"""Against PyTorch, transformers and mlx-lm: `pip install -r requirements-parity.txt`; without them, skipped."""
