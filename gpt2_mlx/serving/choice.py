"""`Choice`: one text of an answer, growing from the engine's outputs."""

import dataclasses
import hashlib
from dataclasses import dataclass, field

import tiktoken

from .. import template
from ..generation.outputs import Output, Token
from ..generation.text import TextStream
from ..tokenizer import StreamingDecoder, Vocabulary, token_bytes
from .answers import CompletionTokensDetails, Logprobs, PromptTokensDetails, ReceiptText, Usage
from .errors import ApiError
from .fields import Conversation, Prompt
from .limits import N_SEEDS
from .schemas import TextRequest
from .submission import Job


@dataclass(frozen=True)
class TokenNote:
    """A token of a text with its log-probabilities; both are None for the first of a prompt."""

    text: str
    offset: int  # in the text of the answer, characters
    logprob: float | None
    top: dict[str, float] | None
    token: Token


@dataclass
class EncodedPrompt:
    """A prompt as token ids, and as text where the answer holds it."""

    ids: list[int]
    context: list[int]  # the newest of them, which the model can look back on
    text: str
    notes: list[TokenNote] | None = None  # of its tokens, once they are known; the same for all samples

    @classmethod
    def of(cls, prompt: Prompt, vocabulary: Vocabulary, block_size: int, echo: bool) -> "EncodedPrompt":
        """An empty text begins as a document does, after <|endoftext|>.

        Raises:
            ApiError: 400, a conversation cannot be put as a prompt.
        """
        encoding = vocabulary.encoding
        if isinstance(prompt, str):
            ids, text = encoding.encode_ordinary(prompt) or [encoding.eot_token], prompt
        elif isinstance(prompt, tuple):
            ids, text = _of_conversation(prompt, vocabulary) or [encoding.eot_token], ""
        else:
            ids, text = prompt, encoding.decode_bytes(prompt).decode(errors="replace") if echo else ""
        return cls(ids, ids[-block_size:], text)


def _of_conversation(messages: Conversation, vocabulary: Vocabulary) -> list[int]:
    if not vocabulary.template:
        message = "the model has no chat template that its tokens spell, so it cannot chat: use /v1/completions"
        raise ApiError(400, message, "messages", code="no_chat_template")
    try:
        return template.encode(vocabulary.encoding, template.render(vocabulary.template, list(messages)))
    except ValueError as error:
        raise ApiError(400, str(error), "messages", code="invalid_value") from None


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
        self.ids: list[int] = []  # the tokens that were drawn
        self.n_found = 0  # tokens of the prompt that the prefix cache had
        self.n_drafted = self.n_accepted = 0  # tokens that were drafted, and those of them that are in the text
        self.last_at: float | None = None  # when its last token came, on the monotonic clock
        self._deltas: list[Delta] = []
        self._encoding = encoding
        self._echo = request.echo
        self._wants_notes = request.wants_logprobs
        self._decoder = TextStream(encoding, request.stop, request.whole_sentence)
        self._base = len(prompt.text) if request.echo else 0
        self._held: list[TokenNote] = []
        self._hashes = hashlib.sha256(), hashlib.sha256()  # of the text and of its notes

    @property
    def record(self) -> ReceiptText:
        """What to know the same text by, however its deltas were cut."""
        parts = [part.hexdigest() for part in self._hashes]
        digest = hashlib.sha256(repr((parts, self.ids, self._deltas[-1].finish_reason)).encode()).hexdigest()
        return ReceiptText(tokens=self.ids, finish_reason=self._deltas[-1].finish_reason, sha256=digest)

    @property
    def is_whole(self) -> bool:
        """Whether the text came to an end of its own; not by a timeout, say."""
        return bool(self._deltas) and self._deltas[-1].finish_reason in ("stop", "length")

    @property
    def whole(self) -> Delta:
        """All of the text so far."""
        last = self._deltas[-1] if self._deltas else Delta()
        text = "".join(delta.text for delta in self._deltas)
        notes = [note for delta in self._deltas for note in delta.notes]
        return Delta(text, notes, last.finish_reason, last.slides)

    def must_wait(self, output: Output) -> bool:
        """Whether the output cannot be taken yet, since the numbers of the prompt are still to come with another."""
        return self._echo and self._wants_notes and self.prompt.notes is None and not output.prompt

    def take(self, output: Output) -> Delta:
        """What an Output adds: the text that is certain, and the notes of the tokens that begin in it."""
        self.n_found, n_before = output.found, len(self.ids)
        text = self._prompt_text(output)
        for token in output.tokens:
            self.ids.append(token.id)
            if self._wants_notes:
                self._held.append(self._note(token, self._base + self._decoder.n_chars))
            text += self._decoder.add(token.id)
            if self._decoder.stopped:
                break
        self.n_drafted += output.drafted
        self.n_accepted += min(output.accepted, len(self.ids) - n_before)  # fewer where a stop string is in them
        if output.finish_reason:
            text += self._decoder.finish()
        if output.end and self._wants_notes and not self._decoder.stopped:
            self._held.append(self._note(output.end, self._base + self._decoder.n_chars))
        reason = "stop" if self._decoder.stopped else output.finish_reason
        delta = Delta(text, self._certain_notes(reason), reason, output.slides)
        self._deltas.append(delta)
        self._hashes[0].update(text.encode(errors="surrogatepass"))
        for note in delta.notes:
            self._hashes[1].update(repr((note.text, note.offset, note.logprob, note.top)).encode())
        return delta

    def _prompt_text(self, output: Output) -> str:
        """The prompt, if it is to be echoed and was not yet; its notes are added on the way."""
        if not self._echo:
            return ""
        self._echo = False
        if self._wants_notes:
            if output.prompt:  # in the first sample's output
                self.prompt.notes = self._prompt_notes(output.prompt)
            self._held += self.prompt.notes or []  # none where the text was ended before the prompt was read
        return self.prompt.text

    def _prompt_notes(self, tokens: tuple[Token, ...]) -> list[TokenNote]:
        # The engine reads the newest tokens of a prompt longer than its context: those before have no numbers.
        unread = [Token(id) for id in self.prompt.ids[: len(self.prompt.ids) - len(tokens)]]
        decoder, notes = StreamingDecoder(self._encoding), []
        n_chars = 0
        for token in (*unread, *tokens):
            notes.append(self._note(token, min(n_chars, self._base)))
            n_chars += len(decoder.add(token.id))
        return notes

    def _note(self, token: Token, offset: int) -> TokenNote:
        text, top = token_text(self._encoding, token.id), None
        if token.logprob is not None:
            top = {token_text(self._encoding, id): logprob for id, logprob in token.alternatives}
            top.setdefault(text, token.logprob)
        return TokenNote(text, offset, token.logprob, top, token)

    def _certain_notes(self, reason: str | None) -> list[TokenNote]:
        """The notes of tokens that begin in the text handed out; at a natural end, all that are left."""
        end = self._base + self._decoder.n_given
        ended = reason and not self._decoder.stopped
        n = len(self._held) if ended else sum(note.offset < end for note in self._held)
        certain, self._held = self._held[:n], self._held[n:]
        return certain


def choices_of(
    request: TextRequest, prompts: list[EncodedPrompt], encoding: tiktoken.Encoding
) -> list[tuple[Job, Choice]]:
    """The texts that a request with a seed asks for, and what the engine is to draw for each."""
    samples = [request.params((request.seed + i) % N_SEEDS) for i in range(request.n)]
    # The prompt's numbers are the same for all of its samples: the first asks for them.
    samples[1:] = [dataclasses.replace(params, prompt_logprobs=False) for params in samples[1:]]
    pairs = [(prompt, params) for prompt in prompts for params in samples]
    return [((p.context, params), Choice(i, p, request, encoding)) for i, (p, params) in enumerate(pairs)]


def usage_of(prompts: list[EncodedPrompt], choices: list[Choice]) -> Usage:
    """What the choices of a request took; each prompt has as many of them as another."""
    prompt, completion = sum(len(p.ids) for p in prompts), sum(len(c.ids) for c in choices)
    accepted = sum(c.n_accepted for c in choices)
    # The first sample of a prompt reads it; the others get it from the first.
    firsts = choices[:: len(choices) // len(prompts)]
    return Usage(
        prompt_tokens=prompt,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(c.n_found for c in firsts)),
        completion_tokens=completion,
        completion_tokens_details=CompletionTokensDetails(
            accepted_prediction_tokens=accepted,
            rejected_prediction_tokens=sum(c.n_drafted for c in choices) - accepted,
        ),
        total_tokens=prompt + completion,
    )


def token_text(encoding: tiktoken.Encoding, id: int) -> str:
    """A token by itself, as OpenAI's API shows it: its text, or "bytes:\\xe2\\x80" where it is part of a character."""
    raw = token_bytes(encoding, id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
