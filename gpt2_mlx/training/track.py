"""A tracker beside a run: a thread follows metrics.jsonl and hands its numbers on. It cannot stop or slow the run."""

import dataclasses
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from .. import metrics
from ..files import new_file, read_json, write_json
from . import ranks
from .config import TrainConfig

EVENTS = ("train", "eval", "skip", "test")  # those with numbers that make a curve
POLL_SECONDS = 2.0
LAST_SECONDS = 30.0  # for what a tracker has to do at the end
PROJECT = "gpt2_mlx"


@contextmanager
def following(config: TrainConfig, run: Path, step: int) -> Iterator[None]:
    """Hand the numbers that a run logs to its tracker, in the first process, until the block ends.

    What goes wrong with the tracker is one line on the terminal. One that hangs at the end is left behind after
    `LAST_SECONDS`, and the process ends there with the block's exit status: a tracker may wait at the exit, too.

    Args:
        config: the run's settings; `track` names the tracker.
        run: the run folder; its metrics.jsonl is rewound to `step`.
        step: the steps that are done.
    """
    if config.track == "off" or not ranks.is_first():
        yield
        return
    follower, status = Follower(config, run, step), None
    try:
        yield
        status = 0
    except SystemExit as stop:
        status = stop.code
        raise
    finally:
        if not follower.finish() and isinstance(status, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


class Follower:
    """A thread that reads metrics.jsonl as it grows. track.json beside it tells how far each tracker has come."""

    def __init__(self, config: TrainConfig, run: Path, step: int):
        self._tracker, self._config, self._run, self._step = config.track, config, run, step
        self._log = run / "metrics.jsonl"
        self._size = self._log.stat().st_size if self._log.exists() else 0  # of what was logged before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def finish(self) -> bool:
        """Let the tracker take what is left. Returns False where it hangs."""
        self._ended.set()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            self._tell(f"has not ended after {LAST_SECONDS:g} s and is left behind")
        return not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            self._hand_over(TRACKERS[self._tracker])
        except ModuleNotFoundError as error:
            self._tell(f"needs a package ({error}): pip install {self._tracker}; the run goes on")
        except (Exception, SystemExit) as error:
            reason = next(iter(str(error).splitlines()), repr(error)).rstrip(".")
            self._tell(f"has failed: {reason}; the run goes on")

    def _hand_over(self, start: "Start") -> None:
        events, offset = metrics.part(self._log, 0, self._size)
        waiting = _curves(events)
        path, count = self._run / "track.json", len(waiting)
        state = read_json(path) if waiting and path.exists() else {"id": uuid.uuid4().hex[:8]}
        waiting = waiting[state.get(self._tracker, 0) :]  # it was handed more than there is if the run was rewound
        log, close = start(self._run, state["id"], self._step + 1 if count else 0, dataclasses.asdict(self._config))
        is_last = False
        while not is_last:
            is_last = self._ended.wait(POLL_SECONDS)  # before reading, so that the last lines are read
            events, offset = metrics.part(self._log, offset)
            new = _curves(events)
            for step, numbers in waiting + new:
                log(step, numbers)
            count += len(new)
            if waiting + new:
                with new_file(path) as aside:
                    write_json(aside, state | {self._tracker: count})
            waiting = []
        close()

    def _tell(self, what: str) -> None:
        tqdm.write(f"NOTE: --track {self._tracker} {what}")
        sys.stdout.flush()


def _curves(events: list[dict]) -> list[tuple[int, dict[str, float]]]:
    """The step and the numbers of each event that has some, by names such as "train/loss"."""
    found = []
    for event in events:
        names = [name for name, value in event.items() if name != "step" and isinstance(value, (int, float))]
        if event["event"] in EVENTS and names:
            found.append((event["step"], {f"{event['event']}/{name}": event[name] for name in names}))
    return found


# Starts a tracker for a run folder, its id, the first step of which nothing is kept, and its settings. Returns how to
# log the numbers of a step, and how to end.
Start = Callable[[Path, str, int, dict], tuple[Callable[[int, dict[str, float]], None], Callable[[], None]]]


def _tensorboard(run: Path, id: str, first: int, config: dict):
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run / "tensorboard"), flush_secs=10)
    start = SessionLog(status=SessionLog.START)  # hides what other files have from this step on
    writer.add_event(Event(wall_time=time.time(), step=first, session_log=start))

    def log(step: int, numbers: dict[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    return log, writer.close


def _wandb(run: Path, id: str, first: int, config: dict):
    import wandb

    project, quiet = os.environ.get("WANDB_PROJECT", PROJECT), wandb.Settings(console="off")
    place = wandb.init(project=project, name=run.name, id=id, dir=run, config=config, resume="allow", settings=quiet)
    place.define_metric("*", step_metric="step")  # its own steps must grow, and the test's is that of the best weights
    return lambda step, numbers: place.log({**numbers, "step": step}), place.finish


def _trackio(run: Path, id: str, first: int, config: dict):
    import trackio

    place = trackio.init(project=PROJECT, name=f"{run.name}-{id}", config=config, resume="allow")
    return lambda step, numbers: place.log(numbers, step=step), place.finish


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}  # each needs a package of its name
