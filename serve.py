"""Serve a checkpoint over HTTP: `python serve.py`; `--help` shows every flag."""

from gpt2_mlx import cli
from gpt2_mlx.commands import serve

if __name__ == "__main__":
    cli.run(serve.main)
