"""`Jobs`: the sequences that are under way, and how they go on after the engine's process has ended.

A sequence is drawn again from its seed by the next process. What its client has got already is left out, and checked:
it must come again as it was.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..generation.outputs import Output
from .messages import Add, Cancel
from .submission import EngineFailed, Event, Refused, Submission


@dataclass(eq=False)
class _Job:
    """One sequence of a submission."""

    submission: Submission
    number: int  # of the job in its submission
    id: int | None = None  # what the process knows it by; each time it is sent it gets another one
    ids: list[int] = field(default_factory=list)  # the tokens that came so far, from whichever process
    n_seen: int = 0  # how many of them this process has brought
    latest: Output | None = None
    has_prompt: bool = False  # whether the prompt's numbers came
    deaths: int = 0  # of processes that ended in a pass with it, one after the other at the same token
    died_at: int = -1  # the number of tokens at the last of them


class Jobs:
    """The jobs of all submissions.

    One of the sequences of the pass in which a process died may be why. If it died twice on a sequence, without a new
    token between, that sequence is doubted: it runs alone, while all others wait, until it has come beyond the place or
    a process dies on it again. Then it is given up, and so it is at once where it was the only one in the pass.
    """

    def __init__(self):
        self._sent: dict[int, _Job] = {}  # by the id that the process knows
        self._unsent: list[_Job] = []  # in the order in which they came
        self._doubted: list[_Job] = []
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._sent) + len(self._unsent)

    @property
    def n_sent(self) -> int:
        """The jobs that the process has."""
        return len(self._sent)

    def add(self, submission: Submission) -> None:
        self._unsent += [_Job(submission, number) for number in range(len(submission.jobs))]

    def with_key(self, key: str) -> Submission | None:
        """The submission with this key that is under way."""
        jobs = (*self._sent.values(), *self._unsent)
        return next((job.submission for job in jobs if job.submission.key == key), None)

    def due(self) -> Iterator[Add | Cancel]:
        """What to tell the process now; jobs count as sent."""
        while self._doubted:
            job = self._doubted[0]
            if len(job.ids) <= job.died_at and job in self:
                yield from self._send([job] if job.id is None else [])
                return
            del self._doubted[0]  # it has come beyond the place, or to its end
            if self._doubted and job.id is not None:
                yield Cancel(job.id)  # until the others have been tried
                self._take_back([job])
        yield from self._send(self._unsent)

    def _send(self, jobs: list[_Job]) -> Iterator[Add]:
        self._unsent = [job for job in self._unsent if job not in jobs]
        for job in jobs:
            self._last_id += 1
            job.id, job.n_seen = self._last_id, 0
            self._sent[job.id] = job
            yield Add(job.id, *job.submission.jobs[job.number], job.submission.number, job.submission.checkpoint)

    def _take_back(self, jobs: list[_Job]) -> None:
        """Have jobs wait again to be sent, before those that came later."""
        for job in jobs:
            del self._sent[job.id]
            job.id = None
        self._unsent = sorted([*jobs, *self._unsent], key=lambda job: job.submission.number)

    def __contains__(self, job: _Job) -> bool:
        return job in self._unsent or job.id in self._sent

    def take(self, output: Output) -> tuple[Submission, Event | Exception] | None:
        """What the client of an output's sequence gets: what is new in it, or an error that ends the request."""
        job = self._sent.get(output.id)
        if job is None:  # cancelled
            return None
        if output.failure:
            return job.submission, Refused(output.failure)
        ids = [token.id for token in output.tokens]
        known = job.ids[job.n_seen : job.n_seen + len(ids)]
        job.n_seen += len(ids)
        if known != ids[: len(known)]:
            return job.submission, EngineFailed("the text could not be drawn again as it was")
        job.ids += ids[len(known) :]
        job.latest = output
        prompt = () if job.has_prompt else output.prompt
        job.has_prompt |= bool(output.prompt)
        fresh = dataclasses.replace(output.after(len(known)), prompt=prompt)
        if output.finish_reason:
            del self._sent[output.id]
            job.id = None
        if not (fresh.tokens or fresh.prompt or fresh.finish_reason):
            return None
        return job.submission, (job.number, fresh)

    def drop(self, submission: Submission, number: int | None = None) -> list[int]:
        """Forget a job of a submission, or all of them; returns the ids of those that the process has."""

        def is_meant(job: _Job) -> bool:
            return job.submission is submission and number in (None, job.number)

        self._unsent = [job for job in self._unsent if not is_meant(job)]
        sent = [id for id, job in self._sent.items() if is_meant(job)]
        for id in sent:
            self._sent.pop(id).id = None
        return sent

    def submission_of(self, id: int) -> Submission | None:
        """The submission of a job that the process has."""
        return self._sent[id].submission if id in self._sent else None

    def conclude(self, submission: Submission, reason: str) -> None:
        """Tell a submission that its texts end where they are."""
        for job in (*self._sent.values(), *self._unsent):
            if job.submission is submission:
                latest = job.latest or Output(0, ())
                event = dataclasses.replace(latest, tokens=(), prompt=(), drafted=0, accepted=0, finish_reason=reason)
                submission.put((job.number, event))

    def died(self, in_pass: tuple[int, ...]) -> Submission | None:
        """The process has died in a pass with these sequences; returns the submission that is given up, if one is."""
        hit = [self._sent[id] for id in in_pass if id in self._sent] or list(self._sent.values())
        for job in hit:
            job.deaths = 1 if len(job.ids) > job.died_at else job.deaths + 1
            job.died_at = len(job.ids)
        doubted = [job for job in hit if job.deaths > 1]
        if len(hit) > 1:
            self._doubted = doubted
        if len(hit) > 1 or not doubted:
            return None
        self.drop(hit[0].submission)
        return hit[0].submission

    def rewind(self) -> None:
        """All are to be sent, to another process."""
        self._take_back(list(self._sent.values()))

    def clear(self) -> set[Submission]:
        """Forget all jobs; returns their submissions."""
        submissions = {job.submission for job in (*self._sent.values(), *self._unsent)}
        self._sent, self._unsent, self._doubted = {}, [], []
        return submissions
