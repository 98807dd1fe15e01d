"""Draw the loss curves of one or several runs: `python plot_loss.py [RUN ...]`; `--help` shows every flag."""

from gpt2_mlx import cli
from gpt2_mlx.commands import plot

if __name__ == "__main__":
    cli.run(plot.main)
