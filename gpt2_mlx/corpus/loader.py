"""Windows of tokens: those of training, in an order that follows from the seed, and those of an evaluation.

Shapes: B batch_size, T block_size.
"""

from collections.abc import Iterator

import numpy as np

from .passages import NONE
from .shards import AnyTokens

IGNORE = -1  # the target of a position whose loss is not counted
# Tokens and targets, the tokens that follow them, and of packed examples where they start: each (B, T) int32.
Windows = tuple[np.ndarray, ...]


class DataLoader:
    """The micro-batches of a training: windows of a split (n,), in an order that follows from the seed alone.

    An epoch cuts the tokens into windows of block_size at a random offset and reads each once, in a random order.
    The tokens of the `ignored` passages (n, 2), as `passages.find` gives them, are read, but as targets are `IGNORE`.
    """

    def __init__(self, tokens: AnyTokens, batch_size: int, block_size: int, seed: int, ignored: np.ndarray = NONE):
        self._tokens, self._batch_size, self._block_size, self._seed = tokens, batch_size, block_size, seed
        self._borders = ignored.ravel()
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)
        self._epoch, self._offset, self._order = -1, 0, np.empty(0)

    def micro_batch(self, number: int) -> Windows:
        """Micro-batch 0, 1, 2, ... of a training: tokens and targets, (B, T) int32. They may be read in any order."""
        first = number * self._batch_size
        tokens, targets = zip(*(self._window(first + row) for row in range(self._batch_size)))
        return np.stack(tokens), np.stack(targets)

    def _window(self, number: int) -> Windows:
        epoch, i = divmod(number, self.windows_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._offset, self._order = self._shuffled(epoch)
        start = self._offset + self._block_size * int(self._order[i])
        tokens = np.asarray(self._tokens[start : start + self._block_size + 1]).astype(np.int32)  # (T + 1,)
        positions = np.arange(start + 1, start + len(tokens))
        is_ignored = np.searchsorted(self._borders, positions, side="right") % 2 == 1  # behind a first border
        return tokens[:-1], np.where(is_ignored, np.int32(IGNORE), tokens[1:])

    def _shuffled(self, epoch: int) -> tuple[int, np.ndarray]:
        n, T = self.windows_per_epoch, self._block_size
        random = np.random.RandomState([self._seed, epoch])  # NumPy promises the same numbers in later versions
        offset = random.randint(min(T, len(self._tokens) - n * T))
        order = np.arange(n, dtype=np.uint32)  # 4 bytes per window
        random.shuffle(order)
        return offset, order


def evaluation_batches(
    tokens: AnyTokens, batch_size: int, block_size: int, stride: int | None = None
) -> Iterator[Windows]:
    """Yield batches of windows in which each target of a split counts once; the others are `IGNORE`.

    A window of block_size begins every `stride` tokens, by default every block_size. All targets of the first window
    count, and the last `stride` of each later one, so that these are predicted from more than block_size - stride
    tokens. The last batch is filled up with targets that do not count.
    """
    stride = stride or block_size
    n = len(tokens) - 1  # targets
    n_windows = 1 + -(-max(0, n - block_size) // stride)
    for first in range(0, n_windows, batch_size):
        shape = (batch_size, block_size)
        inputs, targets = np.zeros(shape, np.int32), np.full(shape, IGNORE, np.int32)
        for row, window in enumerate(range(first, min(first + batch_size, n_windows))):
            own = np.asarray(tokens[window * stride : window * stride + block_size + 1])
            count, seen = len(own) - 1, block_size - stride if window else 0
            inputs[row, :count] = own[:-1]
            targets[row, seen:count] = own[seen + 1 :]
        yield inputs, targets
