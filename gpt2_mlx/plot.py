"""The loss curves of runs, drawn from their metrics.jsonl."""

import io
import math
from pathlib import Path

from . import metrics
from .files import new_file

X_LABELS = {"step": "optimizer steps", "tokens": "tokens read", "time": "minutes"}
Y_LABELS = {"loss": "loss, nats per token", "bits-per-byte": "loss, bits per byte"}
FORMATS = (".png", ".svg", ".pdf")


def draw(runs: list[Path], out: Path, x: str = "step", y: str = "loss") -> None:
    """Draw the training and validation loss of run folders into one figure, and mark the best step and the test loss.

    The ending of `out` decides the format: .png, .svg or .pdf. `x` is the horizontal axis: "step", "tokens" or "time";
    `y` the vertical one: "loss", in nats per token, or "bits-per-byte", for which a training loss is converted by the
    bytes per token of the whole training split.
    Raises a ValueError where a folder is no run, a run has logged no such loss, or `out` has another ending.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out is {out}; its name must end in one of {', '.join(FORMATS)}")
    figure = _figure(runs, x, y, size=(8, 5))
    with new_file(out) as aside:
        figure.savefig(aside, format=out.suffix[1:].lower())


def svg(run: Path, ink: str, accent: str) -> bytes:
    """The figure of one run for a web page: small and transparent, text and axes in `ink`, the curve in `accent`.

    Raises as `draw`.
    """
    figure = _figure([run], "step", "loss", size=(5.2, 3.3), ink=ink, accents=(accent,))
    figure.axes[0].set_title("")
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True)
    return file.getvalue()


def _figure(
    runs: list[Path], x: str, y: str, size: tuple[float, float], ink: str = "black", accents: tuple[str, ...] = ()
):
    curves = [Curve(run, x, y) for run in runs]
    from matplotlib.figure import Figure  # here, since this takes half a second and only drawing needs it

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, curve in enumerate(curves):
        curve.draw(axes, accents[i] if accents else f"C{i}", several=len(curves) > 1)
    axes.set_xlabel(X_LABELS[x], color=ink)
    axes.set_ylabel(Y_LABELS[y], color=ink)
    axes.tick_params(colors=ink)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(ink)
    axes.legend(frameon=False, labelcolor=ink)
    return figure


class Curve:
    """The losses that one run logged, as points of a figure."""

    def __init__(self, run: Path, x: str, y: str = "loss"):
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise ValueError(f"{run} is not a run: it holds no metrics.jsonl")
        self.name, self._events, self._x = run.name, metrics.read(path), x
        self._minutes = {e["step"]: e["elapsed_s"] / 60 for e in self._events if e["event"] == "train"}
        config = next((e["config"] for e in self._events if "config" in e), {})
        self._tokens_per_step = math.prod(config.get(n, 1) for n in ("batch_size", "grad_accum_steps", "block_size"))
        self._train, self._val, self._test = (self._losses(event, y) for event in ("train", "eval", "test"))
        if not self._train and not self._val:
            raise ValueError(
                f"{run} has logged no {'loss yet' if y == 'loss' else 'bits per byte: draw it by --y loss'}"
            )

    def draw(self, axes, colour: str, several: bool) -> None:
        prefix = f"{self.name}: " if several else ""
        axes.plot(*self._points(self._train), colour, alpha=0.35, lw=1, label=f"{prefix}training")
        if self._val:
            axes.plot(*self._points(self._val), colour, marker="o", ms=4, label=f"{prefix}validation")
            step, loss = best = min(self._val, key=lambda pair: pair[1])
            label = f"{prefix}best {loss:.3f} at step {step}"
            axes.plot(*self._points([best]), "*", color=colour, ms=14, label=label)
        for _, loss in self._test[-1:]:
            axes.axhline(loss, color=colour, ls="--", lw=1, label=f"{prefix}test loss {loss:.3f}")
        if not several:
            axes.set_title(self.name)

    def _losses(self, event: str, y: str) -> list[tuple[int, float]]:
        """The (step, loss) pairs of the run's events of one kind."""
        name, factor = "val_loss" if event == "eval" else "loss", 1.0
        if y == "bits-per-byte" and event == "train":
            factor = self._bits_per_nat()
        elif y == "bits-per-byte":
            name = "bits_per_byte"
        pairs = [(e["step"], e.get(name)) for e in self._events if e["event"] == event]
        return [(step, factor * loss) for step, loss in pairs if None not in (loss, factor)]

    def _bits_per_nat(self) -> float | None:
        """The bits per byte of a training loss of one nat per token; None where the run has not counted the bytes."""
        ratios = (e["tokens"]["train"] / e["bytes"]["train"] for e in self._events if e.get("bytes", {}).get("train"))
        return next((ratio / math.log(2) for ratio in ratios), None)

    def _points(self, losses: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
        """The places on the horizontal axis, and the losses, of (step, loss) pairs."""
        return [self._at(step) for step, _ in losses], [loss for _, loss in losses]

    def _at(self, step: int) -> float:
        if self._x == "tokens":
            return step * self._tokens_per_step
        if self._x == "time":  # the time of the nearest step that was logged
            return self._minutes[min(self._minutes, key=lambda known: abs(known - step))] if self._minutes else 0.0
        return step
