"""`Receipts`: what an answer followed from, and what to know the same answer by."""

import dataclasses
import functools
import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import tiktoken
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from .. import __version__, device, pretrained
from ..files import sha256_of_each
from ..pretrained import LoadConfig
from ..tokenizer import Vocabulary
from .answers import AdapterReceipt, Receipt, ReceiptText, Versions
from .chat import ChatRequest
from .choice import Choice, EncodedPrompt, choices_of
from .errors import ApiError
from .parsing import parse
from .schemas import CompletionRequest, SentenceRequest, TextRequest
from .served_adapters import ServedAdapters
from .submission import Job

ROUTES = {
    "/complete-sentence": SentenceRequest,
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
}
# What has no say in the texts.
WITHOUT = {"stream", "stream_options", "supersede", "timeout", "receipt", "checkpoint", "model", "user", "metadata"}
WITHOUT |= {"store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}


@dataclass(frozen=True)
class Answered:
    """A request with its seed, and the texts it got."""

    request: TextRequest
    prompts: list[EncodedPrompt]
    checkpoint: Path
    texts: list[ReceiptText]

    def choices(self, encoding: tiktoken.Encoding) -> list[tuple[Job, Choice]]:
        """The texts anew, and what the engine is to draw for each."""
        return choices_of(self.request, [dataclasses.replace(p, notes=None) for p in self.prompts], encoding)


class Receipts:
    """Makes receipts of answers.

    A checkpoint's hash is computed when its first receipt is made, once; reading takes about 1 s for a GB.

    Args:
        how: how the engine loads its models.
        adapters: those that answer, too.
    """

    def __init__(self, how: LoadConfig, adapters: ServedAdapters):
        self._how, self._adapters = how, adapters
        self._hash = functools.cache(sha256)

    async def make(self, answered: Answered) -> Receipt | None:
        """The receipt of an answer; None where the checkpoint's files are gone."""
        return await run_in_threadpool(self._make, answered)

    def _make(self, answered: Answered) -> Receipt | None:
        request, (folder, number) = answered.request, self._adapters.place(answered.checkpoint)
        try:
            digest, optional = self._hash(folder), {}
            if number:
                own = {"folder": _told(answered.checkpoint), "sha256": self._hash(answered.checkpoint)}
                optional = {"adapter": AdapterReceipt(**own)}
        except OSError:
            return None
        return Receipt(
            route=next(route for route, schema in ROUTES.items() if isinstance(request, schema)),
            request=request.model_dump(by_alias=True, exclude_unset=True, exclude=WITHOUT),
            checkpoint=_told(folder),
            sha256=digest,
            **optional,
            versions=versions(self._how),
            texts=answered.texts,
        )


def _told(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def sha256(folder: Path) -> str:
    """The hash of what a checkpoint's texts follow from. Raises an OSError where its files are gone."""
    names = sorted({file for pattern in pretrained.FILES for file in folder.glob(pattern)})
    if not names:
        raise FileNotFoundError(2, "no checkpoint", str(folder))
    lines = [f"{digest}  {file.name}\n" for digest, file in zip(sha256_of_each(names), names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def versions(how: LoadConfig) -> Versions:
    """What computes here, if models are loaded so."""
    chosen = device.choice(how.device)
    return Versions(
        gpt2_mlx=__version__,
        mlx=mx.__version__,
        platform=platform.platform(),
        device=chosen,
        dtype=device.dtype_on(chosen, how.dtype),
        quantize=how.quantize,
    )


def read(path: Path) -> Receipt:
    """The receipt in a file. Raises an OSError where there is none, and a ValueError where it is not whole."""
    try:
        return Receipt.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no receipt: {f'{where}: ' if where else ''}{first['msg']}") from None


def answered(receipt: Receipt, vocabulary: Vocabulary, folder: Path, block_size: int) -> Answered:
    """What a receipt tells of. Raises a ValueError where its request is none that the service would take."""
    try:
        request = parse(ROUTES[receipt.route], json.dumps(receipt.request).encode(), vocabulary.encoding.n_vocab)
        prompts = [EncodedPrompt.of(prompt, vocabulary, block_size, request.echo) for prompt in request.prompts]
    except ApiError as error:
        raise ValueError(f"the receipt's request cannot be run: {error}") from None
    if request.seed is None:
        raise ValueError("the receipt's request has no seed")
    if (n := len(prompts) * request.n) != len(receipt.texts):
        raise ValueError(f"the receipt has {len(receipt.texts)} texts, but its request asks for {n}")
    return Answered(request, prompts, folder, receipt.texts)


def difference(before: list[ReceiptText], after: list[ReceiptText]) -> str | None:
    """The first difference between the texts of an answer and the same drawn again, in words; None if there is none."""
    for i, (one, other) in enumerate(zip(before, after, strict=True)):
        for place, (was, now) in enumerate(zip(one.tokens, other.tokens)):
            if was != now:
                return f"text {i}: token {place} was {was} and is {now}"
        if len(one.tokens) != len(other.tokens):
            return f"text {i}: it had {len(one.tokens)} tokens and has {len(other.tokens)}"
        if one.finish_reason != other.finish_reason:
            return f"text {i}: its finish_reason was {one.finish_reason} and is {other.finish_reason}"
        if one.sha256 != other.sha256:
            return f"text {i}: the same tokens, but another text or other log-probabilities"
    return None
