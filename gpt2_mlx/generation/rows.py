"""`Row`: a place in a text for which a token is drawn. A pass has one for each sequence and for each drafted token."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .params import SamplingParams
from .scheduler import Sequence


@dataclass(frozen=True, eq=False)
class Row:
    """The place after a sequence's tokens and some drafted ones.

    What is drawn for it counts where the drafted tokens were all drawn for the rows before it: then it is what the
    sequence would get without a draft.
    """

    sequence: Sequence
    drafted: tuple[int, ...] = ()
    matcher: Any = None  # the state of the sequence's constraint here

    @cached_property
    def allowed(self) -> Any:
        """The tokens that the constraint allows next, (V,); None without one."""
        return self.matcher.allowed() if self.matcher else None

    @property
    def params(self) -> SamplingParams:
        return self.sequence.params

    @property
    def slot(self) -> int:
        return self.sequence.slot

    @property
    def newest(self) -> int:
        """The token that the pass reads here."""
        return self.drafted[-1] if self.drafted else self.sequence.context[-1]

    @property
    def start(self) -> int:
        """How many tokens the slot holds before it."""
        return self.sequence.cached + len(self.drafted)

    @property
    def generated(self) -> list[int]:
        """The tokens of the text up to here, without the prompt."""
        return [*self.sequence.generated, *self.drafted] if self.drafted else self.sequence.generated


def rows_of(sequence: Sequence, draft: list[int]) -> list[Row]:
    """The rows of a sequence: for its next token and, as far as its constraint allows the draft, for those after it."""
    rows = [Row(sequence, (), sequence.matcher)]
    for token in draft:
        if row := _after(rows[-1], token):
            rows.append(row)
        else:
            break
    return rows


def _after(row: Row, token: int) -> Row | None:
    """The row after this one and a drafted token; None where the constraint allows no such token, or ends with it."""
    if not row.matcher:
        return Row(row.sequence, (*row.drafted, token))
    if not row.allowed[token] or row.matcher.error:
        return None
    matcher = row.matcher.copy()
    matcher.add(token)
    after = Row(row.sequence, (*row.drafted, token), matcher)
    if matcher.is_complete or (after.allowed is not None and matcher.error):  # told if the text comes to this place
        return None
    return after


def n_that_count(rows: list[Row], ids: list[int]) -> int:
    """How many rows of a sequence count, from the first on, where these tokens were drawn for them."""
    n = 1
    while n < len(rows) and rows[n].newest == ids[n - 1]:
        n += 1
    return n
