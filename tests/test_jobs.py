"""What goes on in another process after one has died: every token once, in order, whatever dies when."""

from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gpt2_mlx.generation.outputs import Output, Token
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.serving.jobs import Jobs
from gpt2_mlx.serving.messages import Cancel
from gpt2_mlx.serving.submission import EngineFailed, Submission


@dataclass(eq=False)
class Client:
    """Someone who waits for texts."""

    lengths: list[int]
    poison: int | None = None  # the token before which the process dies
    got: dict = field(default_factory=dict)
    failed: bool = False

    def __post_init__(self):
        jobs = [([i], SamplingParams(seed=100 * id(self) % 2**63 + i)) for i in range(len(self.lengths))]
        self.submission = Submission(jobs, Path("run"), lambda *_: None)

    def token(self, number: int, position: int) -> int:
        return 1000 * number + position


class Process:
    """Draws a token for each of its sequences a step; dies when told to, and of poison."""

    def __init__(self, clients, messages):
        self.clients, self.at = clients, {}
        self.take(messages)

    def take(self, messages):
        for message in messages:
            if isinstance(message, Cancel):
                del self.at[message.id]  # what it has drawn may still be on its way
            else:
                self.at[message.id] = [message, 0]

    def dying(self):
        return [id for id, (add, n) in self.at.items() if self.client(add).poison == n]

    def client(self, add):
        return next(c for c in self.clients if any(add.params is p for _, p in c.submission.jobs))

    def step(self):
        outputs = []
        for id, (add, n) in list(self.at.items()):
            client, number = self.client(add), add.prompt[0]
            self.at[id][1] += 1
            done = n + 1 == client.lengths[number]
            outputs.append(Output(id, (Token(client.token(number, n)),), (), "length" if done else None))
            if done:
                del self.at[id]
        return outputs


@given(
    clients=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=5),
    poison=st.lists(st.none() | st.integers(0, 11), min_size=5, max_size=5),
    kills=st.sets(st.integers(0, 60), max_size=4),
)
def test_whatever_dies_the_innocent_get_every_token_once(clients, poison, kills):
    clients = [Client(lengths, at) for lengths, at in zip(clients, poison)]
    jobs = Jobs()
    for i, client in enumerate(clients):
        client.submission.number = i
        jobs.add(client.submission)
    process, clock = Process(clients, jobs.due()), 0
    while len(jobs):
        clock += 1
        assert clock < 5000, "it never ends"
        dying = process.dying()
        if dying or clock in kills:
            in_pass = tuple(process.at)
            if submission := jobs.died(in_pass):
                next(c for c in clients if c.submission is submission).failed = True
            jobs.rewind()
            process = Process(clients, jobs.due())
            continue
        for taken in filter(None, map(jobs.take, process.step())):
            submission, event = taken
            assert not isinstance(event, EngineFailed)
            client = next(c for c in clients if c.submission is submission)
            number, output = event
            client.got.setdefault(number, []).extend(token.id for token in output.tokens)
        process.take(jobs.due())
    for client in clients:
        guilty = client.poison is not None and any(client.poison < n for n in client.lengths)
        if not guilty and not kills:  # an outsider's kills may look like poison
            assert not client.failed
        if not client.failed:
            assert client.got == {
                number: [client.token(number, i) for i in range(n)] for number, n in enumerate(client.lengths)
            }
        if guilty:
            assert client.failed


def test_a_text_that_comes_again_otherwise_is_given_up():
    client, jobs = Client([5]), Jobs()
    jobs.add(client.submission)
    (add,) = jobs.due()
    assert jobs.take(Output(add.id, (Token(7),)))
    assert jobs.died(()) is None
    jobs.rewind()
    (again,) = jobs.due()
    assert jobs.take(Output(add.id, (Token(9),))) is None, "it came from the process that is dead"
    submission, error = jobs.take(Output(again.id, (Token(8),)))
    assert submission is client.submission and isinstance(error, EngineFailed)


def test_a_prompts_numbers_are_told_once():
    client, jobs = Client([5]), Jobs()
    jobs.add(client.submission)
    (add,) = jobs.due()
    assert jobs.take(Output(add.id, (), (Token(1),)))[1][1].prompt == (Token(1),)
    jobs.died(())
    jobs.rewind()
    (again,) = jobs.due()
    assert jobs.take(Output(again.id, (), (Token(1),))) is None


def test_what_comes_again_may_be_cut_otherwise():
    """With drafts the tokens of a step depend on the time that passes take."""
    client, jobs = Client([9]), Jobs()
    jobs.add(client.submission)
    (add,) = jobs.due()
    a, b, c, d, e = map(Token, range(5))
    jobs.take(Output(add.id, (a, b, c), drafted=7, accepted=2))
    jobs.died(())
    jobs.rewind()
    (again,) = jobs.due()
    assert jobs.take(Output(again.id, (a,), drafted=1)) is None
    fresh = jobs.take(Output(again.id, (b, c, d, e), drafted=7, accepted=3))[1][1]
    assert (fresh.tokens, fresh.drafted, fresh.accepted) == ((d, e), 7, 1)
