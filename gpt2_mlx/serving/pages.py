"""What a person sees: the playground with the model's card and loss curve, and the API described."""

from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..tokenizer import VOCAB_SIZE
from . import docs, openapi
from .answers import answer
from .errors import ApiError
from .served_run import INKS

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes(n_vocab: int = VOCAB_SIZE) -> tuple[Route, ...]:
    """The routes of the pages, for a model that knows so many tokens; all are open, even where a key is asked for."""
    files = [_file(path, (PAGE / name).read_bytes(), kind) for path, (name, kind) in FILES.items()]
    document = openapi.document(n_vocab)
    return (
        *files,
        Route("/card", card),
        Route("/loss.svg", loss_curve),
        Route("/openapi.json", lambda _: JSONResponse(document)),
        _file("/docs", docs.page(document).encode(), "text/html"),
    )


async def card(request: Request) -> Response:
    service = request.app.state.service
    engine = service.engine
    facts = engine.checkpoint, service.watches, engine.unready, service.adapters.folders
    card = await run_in_threadpool(service.run.card, *facts)
    return answer(card)


async def loss_curve(request: Request) -> Response:
    theme = request.query_params.get("theme", "light")
    if theme not in INKS:
        raise ApiError(400, f"theme is {theme[:80]!r}; allowed: {', '.join(INKS)}", "theme", code="invalid_value")
    try:
        curve = await run_in_threadpool(request.app.state.service.run.curve, theme)
    except ValueError as error:
        raise ApiError(404, str(error)) from None
    return Response(curve, media_type="image/svg+xml", headers={"Cache-Control": "no-cache"})


def _file(path: str, content: bytes, kind: str) -> Route:
    async def send(_: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(path, send)
