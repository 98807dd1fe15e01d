"""`Choice`: one text of an answer, growing from the engine's outputs."""

from dataclasses import dataclass, field

import tiktoken

from ..generation.engine import Output, Token
from ..generation.text import TextStream
from ..tokenizer import token_bytes
from .answers import Logprobs
from .fields import Prompt
from .schemas import TextRequest


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as text and as token ids."""

    text: str
    ids: list[int]

    @classmethod
    def of(cls, prompt: Prompt, encoding: tiktoken.Encoding) -> "EncodedPrompt":
        """An empty text begins as a document does, after <|endoftext|>."""
        if isinstance(prompt, str):
            return cls(prompt, encoding.encode_ordinary(prompt) or [encoding.eot_token])
        return cls("".join(_texts(prompt, encoding)), prompt)


@dataclass(frozen=True)
class TokenNote:
    """A token of a text with its log-probabilities; both are None for the first of a prompt."""

    text: str
    offset: int  # in the text of the answer, characters
    logprob: float | None
    top: dict[str, float] | None


@dataclass
class Delta:
    """The next part of a choice."""

    text: str = ""
    notes: list[TokenNote] = field(default_factory=list)
    finish_reason: str | None = None
    slides: int = 0

    @property
    def logprobs(self) -> Logprobs:
        return Logprobs(
            tokens=[note.text for note in self.notes],
            token_logprobs=[note.logprob for note in self.notes],
            top_logprobs=[note.top for note in self.notes],
            text_offset=[note.offset for note in self.notes],
        )


class Choice:
    """One text of an answer, growing: `take` makes a delta of each Output, `whole` is all of them together."""

    def __init__(self, index: int, prompt: EncodedPrompt, request: TextRequest, encoding: tiktoken.Encoding):
        self.index = index
        self.prompt = prompt
        self.whole = Delta()
        self.n_tokens = 0
        self.last_at: float | None = None  # when its last token came, on the monotonic clock
        self._encoding = encoding
        self._echo = request.echo
        self._wants_notes = request.wants_logprobs
        self._decoder = TextStream(encoding, request.stop, request.whole_sentence)
        self._base = len(prompt.text) if request.echo else 0
        self._held: list[TokenNote] = []

    def take(self, output: Output) -> Delta:
        """What an Output adds: the text that is certain, and the notes of the tokens that begin in it."""
        text = self._prompt_text(output)
        for token in output.tokens:
            self.n_tokens += 1
            self._note(token, self._base + self._decoder.n_chars)
            text += self._decoder.add(token.id)
            if self._decoder.stopped:
                break
        if output.finish_reason:
            text += self._decoder.finish()
        reason = "stop" if self._decoder.stopped else output.finish_reason
        delta = Delta(text, self._certain_notes(reason), reason, output.slides)
        self.whole.text += delta.text
        self.whole.notes += delta.notes
        self.whole.finish_reason, self.whole.slides = reason, output.slides
        return delta

    def _prompt_text(self, output: Output) -> str:
        """The prompt, if it is to be echoed and was not yet; its notes are added on the way."""
        if not self._echo:
            return ""
        self._echo = False
        if self._wants_notes:
            self._note_prompt(output.prompt)
        return self.prompt.text

    def _note_prompt(self, tokens: tuple[Token, ...]) -> None:
        # The engine reads the newest tokens of a prompt longer than its context: those before have no numbers.
        unread = [Token(id) for id in self.prompt.ids[: len(self.prompt.ids) - len(tokens)]]
        decoder = TextStream(self._encoding)
        for token in (*unread, *tokens):
            self._note(token, min(decoder.n_chars, self._base))
            decoder.add(token.id)

    def _note(self, token: Token, offset: int) -> None:
        if not self._wants_notes:
            return
        text, top = _token_text(self._encoding, token.id), None
        if token.logprob is not None:
            top = {_token_text(self._encoding, id): logprob for id, logprob in token.alternatives}
            top.setdefault(text, token.logprob)
        self._held.append(TokenNote(text, offset, token.logprob, top))

    def _certain_notes(self, reason: str | None) -> list[TokenNote]:
        """The notes of tokens that begin in the text handed out; at a natural end, all that are left."""
        end = self._base + self._decoder.n_given
        ended = reason and not self._decoder.stopped
        n = len(self._held) if ended else sum(note.offset < end for note in self._held)
        certain, self._held = self._held[:n], self._held[n:]
        return certain


def _texts(ids: list[int], encoding: tiktoken.Encoding) -> list[str]:
    decoder = TextStream(encoding)
    return [*map(decoder.add, ids), decoder.finish()]


def _token_text(encoding: tiktoken.Encoding, id: int) -> str:
    """A token by itself, as OpenAI's API shows it: its text, or "bytes:\\xe2\\x80" where it is part of a character."""
    raw = token_bytes(encoding, id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
