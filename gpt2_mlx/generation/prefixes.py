"""`Prefixes`: keys and values of prompts that were read before, for prompts that begin as these did."""

from array import array
from collections import OrderedDict
from typing import NamedTuple

import mlx.core as mx

from .scheduler import CHUNK


class PrefixCounts(NamedTuple):
    """What a `Prefixes` did in a while, and what it holds."""

    hits: int = 0  # blocks that were asked for and found
    misses: int = 0  # blocks that had to be computed
    n_bytes: int = 0


class Prefixes:
    """Blocks of keys and values, CHUNK tokens each; those that were used last are kept.

    A block's numbers follow from the adapter and all tokens up to its end, so these are its key: it is of use to a
    prompt with this adapter that begins with them, and to no other. It may hold only what was read as a whole chunk of
    a prompt, for then it has the bits that any such prompt gets; keys and values of a shorter chunk or of decoded
    tokens may have others.

    Args:
        room: the largest number of blocks; 0 keeps none.
    """

    def __init__(self, room: int):
        self.room = room
        self._hits = self._misses = self._block_bytes = 0
        self._blocks: OrderedDict[bytes, list[mx.array]] = OrderedDict()  # those that go first come first

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def n_bytes(self) -> int:
        return len(self) * self._block_bytes

    def take_counts(self) -> PrefixCounts:
        """The hits and misses since the last call."""
        counts = PrefixCounts(self._hits, self._misses, self.n_bytes)
        self._hits = self._misses = 0
        return counts

    def get(self, adapter: int, tokens: list[int]) -> list[mx.array] | None:
        """The last block of these tokens, whole blocks all, with an adapter (0: none); None where it is not here."""
        block = self._blocks.get(_key(adapter, tokens))
        if block:
            self._hits += 1
            self._touch(adapter, tokens)
        return block

    def put(self, adapter: int, tokens: list[int], block: list[mx.array]) -> None:
        """Keep the last block of these tokens, and let go what there is no room for."""
        self._misses += 1
        self._blocks[_key(adapter, tokens)] = block
        self._block_bytes = sum(part.nbytes for part in block)  # all blocks have the same shapes
        self._touch(adapter, tokens)
        while len(self) > self.room:
            self._blocks.popitem(last=False)

    def _touch(self, adapter: int, tokens: list[int]) -> None:
        """Mark the blocks of these tokens as used, the last of them first: without those before it none is of use."""
        for end in range(len(tokens), 0, -CHUNK):
            if (key := _key(adapter, tokens[:end])) in self._blocks:
                self._blocks.move_to_end(key)


def _key(adapter: int, tokens: list[int]) -> bytes:
    return array("i", [adapter, *tokens]).tobytes()
