"""The loss curves of runs, drawn from their metrics.jsonl."""

import io
import math
import textwrap
from pathlib import Path

from . import metrics
from .cli import told
from .files import new_file

X_LABELS = {"step": "optimizer steps", "tokens": "tokens read", "time": "minutes"}
Y_LABELS = {"loss": "loss, nats per token", "bits-per-byte": "loss, bits per byte"}
FORMATS = (".png", ".svg", ".pdf")
NO_CHANGE = ("out", "resume", "fork", "plan", "track")  # settings that do not change what a run computes


def draw(runs: list[Path], out: Path, x: str = "step", y: str = "loss", difference: bool = False) -> None:
    """Draw the training and validation loss of run folders into one figure, and mark the best step and the test loss.

    With `difference` draw the losses of the second of two runs minus those of the first.

    The ending of `out` decides the format: .png, .svg or .pdf. `x` is the horizontal axis: "step", "tokens" or "time";
    `y` the vertical one: "loss", in nats per token, or "bits-per-byte", for which a training loss is converted by the
    bytes per token of the whole training split.
    Raises a ValueError where a folder is no run, a run has logged no such loss, `out` has another ending, or there are
    no two runs with losses over the same steps to take the difference of.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out is {out}; its name must end in one of {', '.join(FORMATS)}")
    if difference and len(runs) != 2:
        raise ValueError(
            f"--difference is of two runs, but there are {len(runs)}: {' '.join(map(str, runs)) or 'none'}"
        )
    curves: list[Curve | Difference] = [Curve(run, x, y) for run in runs]
    if difference:
        curves = [Difference(*curves)]
    figure = _figure(curves, x, "difference of the " * difference + Y_LABELS[y], size=(8, 5))
    with new_file(out) as aside:
        figure.savefig(aside, format=out.suffix[1:].lower())


def svg(run: Path, ink: str, accent: str) -> bytes:
    """The figure of one run for a web page: small and transparent, text and axes in `ink`, the curve in `accent`.

    Raises as `draw`.
    """
    figure = _figure([Curve(run, "step")], "step", Y_LABELS["loss"], size=(5.2, 3.3), ink=ink, accents=(accent,))
    figure.axes[0].set_title("")
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True)
    return file.getvalue()


def _figure(
    curves: "list[Curve | Difference]",
    x: str,
    label: str,
    size: tuple[float, float],
    ink: str = "black",
    accents: tuple[str, ...] = (),
):
    from matplotlib.figure import Figure  # here, since this takes half a second and only drawing needs it

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, curve in enumerate(curves):
        curve.draw(axes, accents[i] if accents else f"C{i}", several=len(curves) > 1)
    axes.set_xlabel(X_LABELS[x], color=ink)
    axes.set_ylabel(label, color=ink)
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
        self.config = next((e["config"] for e in reversed(self._events) if "config" in e), {})
        self._tokens_per_step = math.prod(
            self.config.get(n, 1) for n in ("batch_size", "grad_accum_steps", "block_size")
        )
        self.train, self.val, self.test = (self._losses(event, y) for event in ("train", "eval", "test"))
        if not self.train and not self.val:
            raise ValueError(
                f"{run} has logged no {'loss yet' if y == 'loss' else 'bits per byte: draw it by --y loss'}"
            )

    def draw(self, axes, colour: str, several: bool) -> None:
        prefix = f"{self.name}: " if several else ""
        axes.plot(*self.points(self.train), colour, alpha=0.35, lw=1, label=f"{prefix}training")
        if self.val:
            axes.plot(*self.points(self.val), colour, marker="o", ms=4, label=f"{prefix}validation")
            step, loss = best = min(self.val, key=lambda pair: pair[1])
            label = f"{prefix}best {loss:.3f} at step {step}"
            axes.plot(*self.points([best]), "*", color=colour, ms=14, label=label)
        for _, loss in self.test[-1:]:
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

    def beginnings(self) -> dict[int, int]:
        """The step after which the steps begin that a train event is about, by the event's own step."""
        found, last = {}, 0
        for e in self._events:
            if e["event"] == "train":
                found[e["step"]] = last
            if e["event"] in ("start", "resume", "train"):
                last = e["step"]
        return found

    def points(self, losses: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
        """The places on the horizontal axis, and the losses, of (step, loss) pairs."""
        return [self._at(step) for step, _ in losses], [loss for _, loss in losses]

    def _at(self, step: int) -> float:
        if self._x == "tokens":
            return step * self._tokens_per_step
        if self._x == "time":  # the time of the nearest step that was logged
            return self._minutes[min(self._minutes, key=lambda known: abs(known - step))] if self._minutes else 0.0
        return step


class Difference:
    """The losses of a run minus those of another one, over the steps that both have logged, as points of a figure."""

    def __init__(self, run: Curve, other: Curve):
        self._run, self._other = run, other
        begun, others_begun = run.beginnings(), other.beginnings()
        pairs = self._of("train")
        self._train = [(step, loss) for step, loss in pairs if begun[step] == others_begun[step]]
        self._val = self._of("val")
        if not self._train and not self._val:
            raise ValueError(f"{run.name} and {other.name} have logged no loss over the same steps")

    def _of(self, kind: str) -> list[tuple[int, float]]:
        known = dict(getattr(self._run, kind))
        return [(step, loss - known[step]) for step, loss in getattr(self._other, kind) if step in known]

    def draw(self, axes, colour: str, several: bool) -> None:
        axes.axhline(0, color="black", lw=1)
        axes.plot(*self._other.points(self._train), colour, alpha=0.35, lw=1, label="training")
        if self._val:
            axes.plot(*self._other.points(self._val), colour, marker="o", ms=4, label="validation")
        for (_, tested), (_, loss) in zip(self._run.test[-1:], self._other.test[-1:]):
            axes.axhline(loss - tested, color=colour, ls="--", lw=1, label=f"test loss {loss - tested:+.3f}")
        changes = textwrap.fill(_changes(self._run.config, self._other.config), 100)
        axes.set_title(f"{self._other.name} \N{MINUS SIGN} {self._run.name}\n{changes}", fontsize="medium")


def _changes(config: dict, other: dict) -> str:
    """What differs between the settings of two runs."""
    names = [name for name in {**config, **other} if name not in NO_CHANGE and config.get(name) != other.get(name)]
    arrow = "\N{RIGHTWARDS ARROW}"
    changes = [f"--{n.replace('_', '-')} {told(config.get(n))} {arrow} {told(other.get(n))}" for n in names]
    return ", ".join(changes) or "the same settings"
