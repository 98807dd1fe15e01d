"""The commands of python -m gpt2_mlx: flags, and what they print."""
