"""Train a GPT-2 on a text: `python train.py`; `--help` shows every flag."""

from gpt2_mlx import cli
from gpt2_mlx.commands import train

if __name__ == "__main__":
    cli.run(train.main)
