"""`ServedRun`: what the folder of the served model tells of it."""

import dataclasses
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from .. import checkpoint, metrics, plot, pretrained
from ..config import PRESETS, GPT2Config
from .answers import Card, Checkpoint

log = logging.getLogger(__name__)

INKS = {"light": ("#57534e", "#0b6e63"), "dark": ("#a8a29e", "#5cc9b9")}  # of the page: muted text, accent


class ServedRun:
    """Checkpoints, numbers and loss curve of what is served; read anew when the training has written more.

    Args:
        path: a run, or a checkpoint folder, which may lie in a run or by itself.
        name: what the model is called.

    Raises:
        ValueError: it is neither.
    """

    def __init__(self, path: Path, name: str):
        folder = checkpoint.resolve(path)
        self.name = name
        self._first = folder.resolve()
        self._config = dataclasses.replace(pretrained.read_config(folder), dropout=0.0)  # of all its checkpoints
        self._folder = path if (path / "metrics.jsonl").is_file() else path.resolve().parent
        self._log = self._folder / "metrics.jsonl"
        self._read = (None, [])  # what metrics.jsonl looked like when it was read, and its events
        self._drawn: dict[str, tuple[object, bytes]] = {}
        self._drawing = threading.Lock()

    @property
    def block_size(self) -> int:
        """The number of tokens its model can look back on."""
        return self._config.block_size

    def checkpoints(self) -> dict[str, Path]:
        """The folders of the checkpoints that requests may name, by name, the oldest first."""
        steps = [path.resolve() for path in checkpoint.all_of(self._folder) if (path / "config.json").is_file()]
        if not self._log.is_file() or not steps:
            steps = [self._first]  # it is no run, or it was moved away
        return {folder.name: folder for folder in steps}

    def card(self, served: Path, watch: bool, unready: str | None, adapters: Iterable[str] = ()) -> Card:
        """The model's card: its shape, what it learned from, how well, and its checkpoints.

        Args:
            served: the folder of the checkpoint that answers.
            watch: whether a new best checkpoint takes over.
            unready: why a request would not be served, if it would not.
            adapters: the names of those that requests may name, too.
        """
        events, shape = self._events(), dataclasses.replace(self._config, vocab_size=GPT2Config.vocab_size)
        evals = {event["step"]: event for event in events if event["event"] == "eval"}
        test = next((event for event in reversed(events) if event["event"] == "test"), {})
        begun = next((event for event in events if event["event"] in ("start", "resume")), {})
        return Card(
            model=self.name,
            preset=next((name for name, preset in PRESETS.items() if preset == shape), None),
            n_params=self._config.n_params,
            **{
                name: getattr(self._config, name)
                for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
            },
            data=begun.get("text", {}).get("name"),
            step=max((event["step"] for event in events), default=None),
            max_steps=begun.get("config", {}).get("max_steps"),
            ended=next((event["reason"] for event in events[-1:] if event["event"] == "end"), None),
            test_loss=test.get("loss"),
            test_bits_per_byte=test.get("bits_per_byte"),
            checkpoint=_checkpoint(served.name, evals),
            checkpoints=[_checkpoint(name, evals) for name in (*self.checkpoints(), *adapters)],
            watch=watch,
            unready=unready,
        )

    def curve(self, theme: str) -> bytes:
        """The loss curve as SVG, in the inks of the page's theme, "light" or "dark".

        Raises:
            ValueError: nothing has been logged that could be drawn.
        """
        with self._drawing:  # one at a time: the others find it drawn
            seen, drawn = self._drawn.get(theme, (None, b""))
            now = self._stamp()
            if seen is None or seen != now:
                drawn = plot.svg(self._folder, *INKS[theme])
                self._drawn[theme] = (now, drawn)
            return drawn

    def _events(self) -> list[dict]:
        seen, events = self._read
        now = self._stamp()
        if now is None:
            return []
        if seen != now:
            try:
                events = metrics.read(self._log)
            except (OSError, ValueError) as error:
                log.warning("%s", error)
                events = []
            self._read = (now, events)
        return events

    def _stamp(self) -> tuple[int, int] | None:
        """What changes whenever the run has written to its log; None without one."""
        try:
            status = self._log.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size


def _checkpoint(name: str, evals: dict[int, dict]) -> Checkpoint:
    step = checkpoint.step(name)
    found = {field: evals.get(step, {}).get(field) for field in ("val_loss", "bits_per_byte")}
    return Checkpoint(name=name, step=step, **found)
