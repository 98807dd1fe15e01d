"""`Jobs`: the sequences that are under way, and how they go on after the engine's process has ended.

A sequence is drawn again from its seed by the next process. What its client has got already is left out, and checked:
it must come again as it was.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..generation.engine import Output
from .messages import Add, Cancel
from .submission import EngineFailed, Event, Submission


@dataclass(eq=False)
class _Job:
    """One sequence of a submission."""

    submission: Submission
    number: int  # of the job in its submission
    request: int
    ids: list[int] = field(default_factory=list)  # the tokens that came so far, from whichever process
    n_seen: int = 0  # how many of them this process has brought
    has_prompt: bool = False  # whether the prompt's numbers came
    deaths: int = 0  # of processes that ended in a pass with it, one after the other at the same token
    died_at: int = -1  # the number of tokens at the last of them


class Jobs:
    """Jobs by the id that the engine knows them by.

    One of the sequences of the pass in which a process died may be why. If it died twice on a sequence, without a new
    token between, that sequence is doubted: it runs alone, while all others wait, until it has come beyond the place or
    a process dies on it again. Then it is given up, and so it is at once where it was the only one in the pass.
    """

    def __init__(self):
        self._jobs: dict[int, _Job] = {}
        self._unsent: list[int] = []
        self._doubted: list[int] = []
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def n_sent(self) -> int:
        """The jobs that the process has."""
        return len(self._jobs) - len(self._unsent)

    def add(self, submission: Submission, request: int) -> None:
        for number in range(len(submission.jobs)):
            self._last_id += 1
            self._jobs[self._last_id] = _Job(submission, number, request)
            self._unsent.append(self._last_id)

    def due(self) -> Iterator[Add | Cancel]:
        """What to tell the process now; sequences count as sent."""
        while self._doubted:
            first = self._doubted[0]
            job = self._jobs.get(first)
            if job and len(job.ids) <= job.died_at:
                yield from self._send([first] if first in self._unsent else [])
                return
            del self._doubted[0]  # it has come beyond the place, or to its end
            if job and self._doubted:
                yield Cancel(first)  # until the others have been tried
                job.n_seen = 0
                self._unsent.append(first)
        yield from self._send(self._unsent)

    def _send(self, ids: list[int]) -> Iterator[Add]:
        self._unsent = [id for id in self._unsent if id not in ids]
        for id in sorted(ids):
            job = self._jobs[id]
            yield Add(id, *job.submission.jobs[job.number], job.request, job.submission.checkpoint)

    def take(self, output: Output) -> tuple[Submission, Event | Exception] | None:
        """What the client of an output's sequence gets: what is new in it, if anything is."""
        job = self._jobs.get(output.id)
        if job is None:  # cancelled
            return None
        ids = [token.id for token in output.tokens]
        known = job.ids[job.n_seen : job.n_seen + len(ids)]
        job.n_seen += len(ids)
        if known != ids[: len(known)]:
            return self.fail(output.id), EngineFailed("the text could not be drawn again as it was")
        job.ids += ids[len(known) :]
        prompt = () if job.has_prompt else output.prompt
        job.has_prompt |= bool(output.prompt)
        fresh = dataclasses.replace(output, tokens=output.tokens[len(known) :], prompt=prompt)
        if output.finish_reason:
            del self._jobs[output.id]
        if not (fresh.tokens or fresh.prompt or fresh.finish_reason):
            return None
        return job.submission, (job.number, fresh)

    def drop(self, submission: Submission, number: int | None = None) -> list[int]:
        """Forget a job of a submission, or all of them; returns the ids of those that the process has."""
        mine = [i for i, job in self._jobs.items() if job.submission is submission and number in (None, job.number)]
        sent = [id for id in mine if id not in self._unsent]
        for id in mine:
            del self._jobs[id]
        self._unsent = [id for id in self._unsent if id in self._jobs]
        return sent

    def fail(self, id: int) -> Submission | None:
        """The submission of a job, which is forgotten whole."""
        if id not in self._jobs:
            return None
        submission = self._jobs[id].submission
        self.drop(submission)
        return submission

    def died(self, in_pass: tuple[int, ...]) -> Submission | None:
        """The process has died in a pass with these sequences; returns the submission that is given up, if one is."""
        hit = [id for id in in_pass if id in self._jobs] or [id for id in self._jobs if id not in self._unsent]
        for job in map(self._jobs.get, hit):
            job.deaths = 1 if len(job.ids) > job.died_at else job.deaths + 1
            job.died_at = len(job.ids)
        doubted = [id for id in hit if self._jobs[id].deaths > 1]
        if len(hit) > 1:
            self._doubted = doubted
        return self.fail(hit[0]) if len(hit) == 1 and doubted else None

    def rewind(self) -> None:
        """All are to be sent, to another process."""
        self._unsent = list(self._jobs)
        for job in self._jobs.values():
            job.n_seen = 0

    def clear(self) -> set[Submission]:
        """Forget all jobs; returns their submissions."""
        submissions = {job.submission for job in self._jobs.values()}
        self._jobs, self._unsent, self._doubted = {}, [], []
        return submissions
