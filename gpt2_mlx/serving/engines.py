"""`Engines`: an Engine for each checkpoint in use, behind the methods of one."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from .. import device, pretrained
from ..generation.engine import Engine
from ..generation.outputs import Output
from ..generation.params import SamplingParams
from ..generation.prefixes import PrefixCounts
from ..model import GPT2
from .messages import Loaded, NotLoaded, NotTaken
from .served_adapters import NO_ADAPTERS, ServedAdapters

MAX_ENGINES = 5
KEEP_SECONDS = 300.0  # how long an engine that has nothing to do is kept

Loading = Generator[None, None, Engine]  # loads a part at a time; returns the engine


class Full(Exception):
    """There is no room for another checkpoint now."""


class TooLarge(ValueError):
    """A checkpoint does not fit into the memory that is left."""


def loading(
    folder: Path, dtype: str, quantize: int | None, make: Callable[[GPT2, Path], Engine], beside: int = 0
) -> Loading:
    """Load a checkpoint a part at a time; `make` gets the model and the folder, and adds so many bytes `beside` it.

    Raises:
        ValueError: it is broken.
        TooLarge: it does not fit into memory beside the others.
    """
    size, room = pretrained.size(folder, dtype) + beside, device.memory() - mx.get_active_memory()
    if size > room:
        raise TooLarge(f"{folder} takes {size / 1e9:.2f} GB, but there is room for {max(room, 0) / 1e9:.2f} GB")
    model = yield from pretrained.loading(folder, dtype, quantize)
    return make(model, folder)


@dataclass
class _Pending:
    """A checkpoint on its way, and what waits for it."""

    steps: Loading
    jobs: list[tuple[int, list[int], SamplingParams, int, int]] = field(default_factory=list)
    answers: bool = False  # whether it shall answer once it is loaded


class Engines:
    """One Engine that answers, and others for requests that name a checkpoint or began on an older one.

    A sequence ends on the checkpoint it began with: its cached keys and values are of no use to another, and its text
    is that of one model. So `swap` waits for nobody and restarts nothing: what comes later goes to the new engine, and
    what came before goes on in the old one. The engines take a step each in turn. A checkpoint is loaded beside the
    steps, a part before each. An engine without work is kept for a while, or until its room is needed.

    Args:
        load: begins to load the Engine of a checkpoint's folder.
        checkpoint: the folder of the one that answers.
        adapters: those that the Engine of their base has.
    """

    def __init__(self, load: Callable[[Path], Loading], checkpoint: Path, adapters: ServedAdapters = NO_ADAPTERS):
        self.checkpoint = checkpoint
        self._adapters = adapters
        self._load = load
        self._pending: dict[Path, _Pending] = {}
        self._used: dict[Path, float] = {}  # when each engine last had work, the one longest ago first
        self._news: list[Loaded | NotLoaded | NotTaken] = []
        self._n_steps = 0
        self._engines: dict[Path, Engine] = {}
        steps = load(checkpoint)
        while (engine := _next_part(steps)) is None:
            pass
        self._engines[checkpoint] = engine

    def swap(self, checkpoint: Path) -> None:
        """Let another checkpoint answer, once it is loaded; `take_news` tells when, or why it cannot be."""
        if checkpoint in self._engines:
            self._answer_with(checkpoint)
        else:
            try:
                self._begin(checkpoint).answers = True
            except Full as error:
                self._news.append(NotLoaded(checkpoint, str(error)))

    def add(self, id: int, prompt: list[int], params: SamplingParams, request: int, checkpoint: Path) -> None:
        """Queue a sequence for a checkpoint, or for an adapter in its folder.

        Raises:
            ValueError: the prompt is empty or a token is out of range.
            Full: too many checkpoints are in use.
        """
        checkpoint, adapter = self._adapters.place(checkpoint)
        if checkpoint in self._engines:
            self._engines[checkpoint].add(prompt, params, id, request, adapter)
        else:
            self._begin(checkpoint).jobs.append((id, prompt, params, request, adapter))

    def cancel(self, id: int) -> None:
        """As `Engine.cancel`."""
        for engine in self._engines.values():
            engine.cancel(id)
        for pending in self._pending.values():
            pending.jobs = [job for job in pending.jobs if job[0] != id]

    def step(self) -> list[Output]:
        """Load a part of what is to be loaded, and take a step of the engine whose turn it is."""
        self._n_steps += 1
        if self._pending:
            self._load_part()
        busy = [path for path, engine in self._engines.items() if engine.has_work]
        if not busy:
            return []
        path = busy[self._n_steps % len(busy)]
        self._used[path] = time.monotonic()
        return self._engines[path].step()

    def take_prefix_counts(self) -> PrefixCounts:
        """What the engines' prefixes did since the last call."""
        counts = [engine.prefixes.take_counts() for engine in self._engines.values()]
        return PrefixCounts(*map(sum, zip(*counts)))

    def warm_up(self) -> None:
        """Warm up the engine that answers; those that come later run the same shapes."""
        self._engines[self.checkpoint].warm_up()

    def learn_vocabulary(self) -> None:
        """Have the engine that answers learn its vocabulary, so that the first constraint stops nobody."""
        self._engines[self.checkpoint].learn_vocabulary()

    def take_news(self) -> list[Loaded | NotLoaded | NotTaken]:
        """What became of checkpoints and of what waited for them; also the time to let idle engines go."""
        now = time.monotonic()
        for path in [p for p in self._idle() if now - self._used.get(p, 0) > KEEP_SECONDS]:
            self._let_go(path)
        news, self._news = self._news, []
        return news

    @property
    def loaded(self) -> tuple[Path, ...]:
        """The checkpoints that have an engine."""
        return tuple(self._engines)

    @property
    def is_loading(self) -> bool:
        return bool(self._pending)

    @property
    def has_work(self) -> bool:
        return self.is_loading or any(engine.has_work for engine in self._engines.values())

    @property
    def n_running(self) -> int:
        return sum(engine.n_running for engine in self._engines.values())

    def _begin(self, checkpoint: Path) -> _Pending:
        if checkpoint not in self._pending:
            while len(self._engines) + len(self._pending) >= MAX_ENGINES:
                idle = self._idle()
                if not idle:
                    raise Full(f"{MAX_ENGINES} checkpoints are in use; no more may be")
                self._let_go(idle[0])
            self._pending[checkpoint] = _Pending(self._load(checkpoint))
        return self._pending[checkpoint]

    def _load_part(self) -> None:
        """Go on with the checkpoint that has waited longest."""
        checkpoint, pending = next(iter(self._pending.items()))
        try:
            engine = _next_part(pending.steps)
        except Exception as error:
            if isinstance(error, TooLarge) and (idle := self._idle()):
                self._let_go(idle[0])
                pending.steps = self._load(checkpoint)
                return
            del self._pending[checkpoint]
            self._news.append(NotLoaded(checkpoint, str(error)))
            self._news += [NotTaken(id, str(error)) for id, *_ in pending.jobs]
            return
        if engine is None:
            return
        del self._pending[checkpoint]
        self._engines[checkpoint] = engine
        self._used[checkpoint] = time.monotonic()
        for id, prompt, params, request, adapter in pending.jobs:
            try:
                engine.add(prompt, params, id, request, adapter)
            except ValueError as error:
                self._news.append(NotTaken(id, str(error)))
        if pending.answers:
            self._answer_with(checkpoint)

    def _answer_with(self, checkpoint: Path) -> None:
        self._used[self.checkpoint] = time.monotonic()
        self.checkpoint = checkpoint
        self._news.append(Loaded(checkpoint))

    def _idle(self) -> list[Path]:
        """The engines without work that do not answer, those first that have been idle longest."""
        idle = [p for p, engine in self._engines.items() if p != self.checkpoint and not engine.has_work]
        return sorted(idle, key=lambda p: self._used.get(p, 0))

    def _let_go(self, checkpoint: Path) -> None:
        del self._engines[checkpoint]
        self._used.pop(checkpoint, None)
        mx.clear_cache()


def _next_part(steps: Loading) -> Engine | None:
    try:
        next(steps)
    except StopIteration as done:
        return done.value
    return None
