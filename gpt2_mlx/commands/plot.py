"""gpt2-mlx plot: the loss curves of one or several runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import checkpoint, cli, plot


@dataclass(frozen=True)
class PlotConfig:
    """Draw the training and validation loss of one or several runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders. Default: the newest one in checkpoints/."""
    out: Path | None = None
    """The figure, .png, .svg or .pdf. Default: loss.png in the first run's folder; difference.png in the second's."""
    x: Literal["step", "tokens", "time"] = "step"
    """The horizontal axis: optimizer steps, tokens read, or minutes."""
    y: Literal["loss", "bits-per-byte"] = "loss"
    """The vertical axis: nats per token, or bits per byte, by which runs with different vocabularies compare. Training
    losses become bits per byte by the bytes per token of the whole training split."""
    difference: bool = False
    """Draw the losses of the second of two runs minus those of the first, over the steps that both have logged."""


def main() -> None:
    config = cli.parse(PlotConfig)
    runs = list(config.runs) or [checkpoint.newest_run(Path("checkpoints"), "metrics.jsonl")]
    out = config.out or (runs[-1] / "difference.png" if config.difference else runs[0] / "loss.png")
    plot.draw(runs, out, config.x, config.y, config.difference)
    print(out)
