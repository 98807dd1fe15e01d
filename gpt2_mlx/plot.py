"""The loss curves of runs, drawn from their metrics.jsonl."""

import io
from pathlib import Path

from . import metrics
from .files import new_file

X_LABELS = {"step": "optimizer steps", "tokens": "tokens read", "time": "minutes"}
FORMATS = (".png", ".svg", ".pdf")


def draw(runs: list[Path], out: Path, x: str = "step") -> None:
    """Draw the training and validation loss of runs into one figure, best step and test loss marked.

    Args:
        runs: run folders.
        out: the file; its ending decides the format: .png, .svg or .pdf.
        x: the horizontal axis, "step", "tokens" or "time".

    Raises:
        ValueError: a folder holds no run, a run has logged nothing to draw, or the ending is another.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out is {out}; its name must end in one of {', '.join(FORMATS)}")
    figure = _figure(runs, x, size=(8, 5))
    with new_file(out) as aside:
        figure.savefig(aside, format=out.suffix[1:].lower())


def svg(run: Path, ink: str, accent: str) -> bytes:
    """The same of one run for a web page: small, transparent, text and axes in one colour and the curve in another.

    Raises:
        ValueError: as `draw`.
    """
    figure = _figure([run], "step", size=(5.2, 3.3), ink=ink, accents=(accent,))
    figure.axes[0].set_title("")
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True)
    return file.getvalue()


def _figure(runs: list[Path], x: str, size: tuple[float, float], ink: str = "black", accents: tuple[str, ...] = ()):
    curves = [Curve(run, x) for run in runs]
    from matplotlib.figure import Figure  # half a second that only drawing needs

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, curve in enumerate(curves):
        curve.draw(axes, accents[i] if accents else f"C{i}", several=len(curves) > 1)
    axes.set_xlabel(X_LABELS[x], color=ink)
    axes.set_ylabel("loss, nats per token", color=ink)
    axes.tick_params(colors=ink)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(ink)
    axes.legend(frameon=False, labelcolor=ink)
    return figure


class Curve:
    """What one run logged, as the points of a figure."""

    def __init__(self, run: Path, x: str):
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise ValueError(f"{run} is not a run: it holds no metrics.jsonl")
        events = metrics.read(path)
        self.name = run.name
        self.train = [e for e in events if e["event"] == "train" and e["loss"] is not None]
        self.val = [e for e in events if e["event"] == "eval" and e["val_loss"] is not None]
        self.test = next((e for e in reversed(events) if e["event"] == "test" and e["loss"] is not None), None)
        if not self.train and not self.val:
            raise ValueError(f"{run} has logged no loss yet")
        self._tokens_per_step = _tokens_per_step(events)
        self._times = [(e["step"], e["elapsed_s"] / 60) for e in self.train]
        self._x = x

    def draw(self, axes, colour: str, several: bool) -> None:
        prefix = f"{self.name}: " if several else ""
        points = [self._at(e["step"]) for e in self.train]
        axes.plot(points, [e["loss"] for e in self.train], colour, alpha=0.35, lw=1, label=f"{prefix}training")
        if self.val:
            points = [self._at(e["step"]) for e in self.val]
            axes.plot(points, [e["val_loss"] for e in self.val], colour, marker="o", ms=4, label=f"{prefix}validation")
            best = min(self.val, key=lambda e: e["val_loss"])
            label = f"{prefix}best {best['val_loss']:.3f} at step {best['step']}"
            axes.plot(self._at(best["step"]), best["val_loss"], "*", color=colour, ms=14, label=label)
        if self.test:
            axes.axhline(
                self.test["loss"], color=colour, ls="--", lw=1, label=f"{prefix}test loss {self.test['loss']:.3f}"
            )
        if not several:
            axes.set_title(self.name)

    def _at(self, step: int) -> float:
        if self._x == "tokens":
            return step * self._tokens_per_step
        if self._x == "time":
            return min(self._times, key=lambda known: abs(known[0] - step), default=(0, 0.0))[1]
        return step


def _tokens_per_step(events: list[dict]) -> int:
    for event in events:
        if event["event"] in ("start", "resume"):
            config = event["config"]
            return config["batch_size"] * config["grad_accum_steps"] * config["block_size"]
    return 1
