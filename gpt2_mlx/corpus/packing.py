"""Windows that hold whole examples, which do not see each other.

Shapes: B batch_size, T block_size.
"""

from collections.abc import Iterator

import numpy as np

from .examples import Examples
from .loader import IGNORE, Windows


class PackedWindows:
    """Windows of T tokens with the examples that fit into one, each whole and in one of them.

    The longest goes first, each into the fullest window that has room for it (best fit decreasing). The targets of a
    window are the tokens of answers, all others `IGNORE`. The third array tells of each position where in the window
    its example starts, as `GPT2.hidden` takes it.

    Attributes:
        targets: (n,) uint16, the tokens of all answers.
    """

    def __init__(self, examples: Examples, block_size: int):
        self._examples, self._block_size = examples, block_size
        fits = examples.lengths <= block_size + 1  # the last token is only a target
        self._order, self._ends = _best_fit(examples.lengths - 1, np.flatnonzero(fits), block_size)
        self.targets = examples.tokens[examples.learnt & np.repeat(fits, examples.lengths)]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets and starts of a window: (T,) int32."""
        T, at = self._block_size, 0
        tokens, targets, starts = np.zeros(T, np.int32), np.full(T, IGNORE, np.int32), np.zeros(T, np.int32)
        for i in self._order[self._ends[number - 1] if number else 0 : self._ends[number]]:
            example = self._examples.part(int(i), int(i) + 1)
            stop = at + len(example.tokens) - 1
            tokens[at:stop] = example.tokens[:-1]
            targets[at:stop] = np.where(example.learnt[1:], example.tokens[1:].astype(np.int32), IGNORE)
            starts[at:stop] = at
            at = stop
        starts[at:] = at
        return tokens, targets, starts

    def batches(self, batch_size: int) -> Iterator[Windows]:
        """Yield all windows once; the last batch is filled up with windows that have no targets."""
        for first in range(0, len(self), batch_size):
            rows = [self[number] for number in range(first, min(first + batch_size, len(self)))]
            tokens, targets, starts = rows[0]
            rows += [(tokens, np.full_like(targets, IGNORE), starts)] * (batch_size - len(rows))
            yield tuple(map(np.stack, zip(*rows)))


class ExampleLoader:
    """The micro-batches of a training on examples. An epoch reads each window once, in an order that follows from the
    seed alone."""

    def __init__(self, windows: PackedWindows, batch_size: int, seed: int):
        self._windows, self._batch_size, self._seed = windows, batch_size, seed
        self._epoch, self._order = -1, np.empty(0)

    def micro_batch(self, number: int) -> Windows:
        """Micro-batch 0, 1, 2, ... of a training. They may be read in any order."""
        first = number * self._batch_size
        return tuple(map(np.stack, zip(*(self._row(first + row) for row in range(self._batch_size)))))

    def _row(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, i = divmod(number, len(self._windows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.arange(len(self._windows), dtype=np.uint32)
            np.random.RandomState([self._seed, epoch]).shuffle(self._order)
        return self._windows[int(self._order[i])]


def _best_fit(sizes: np.ndarray, numbers: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack what has these sizes, of which only these `numbers`, into as few windows as best fit decreasing takes.

    Returns the numbers, one window after the other, and the place after the last of each window.
    """
    windows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]  # windows by the room that they have left
    rooms = 0  # bit r is set where a window has room r left
    for number in numbers[np.argsort(-sizes[numbers], kind="stable")].tolist():
        size = int(sizes[number])
        if fitting := rooms >> size:
            left = size + (fitting & -fitting).bit_length() - 1  # the least room that is enough
            window = with_room[left].pop()
            if not with_room[left]:
                rooms ^= 1 << left
            windows[window].append(number)
        else:
            left, window = room, len(windows)
            windows.append([number])
        with_room[left - size].append(window)
        rooms |= 1 << left - size
    order = np.array([number for window in windows for number in window], np.int64)
    return order, np.cumsum([len(window) for window in windows], dtype=np.int64)
