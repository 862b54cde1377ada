"""The page's server: static files, the API in JSON, and events, behind a guard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from launch.page.answers import MOST_POINTS, Answers, TooMuchError
from launch.page.guard import Access, RequestGuard, refusal
from launch.page.live import Ending, live
from launch.page.rows import encoded
from launch.page.state import StopError, stop_run

STATIC = Path(__file__).parent / "static"
_MOST_HITS, _MOST_ASKED = 200, 100_000
_LARGEST = 2**53


class QueryError(Exception):
    """A question cannot be understood: one line says why."""


def page_app(directory: Path, access: Access, ending: Ending = lambda: False) -> Starlette:
    """The application.

    Args:
        directory: a run, or a directory of runs; nothing outside of it is read.
        access: where it is served, and its token.
        ending: whether the server is ending, which connections that wait for events would hold up.
    """
    answers = Answers(directory)
    routes = [
        *(Route(f"/api/{name}", _json(answers, answer)) for name, answer in _ANSWERS.items()),
        Route("/api/live", lambda request: _live(answers, request, ending)),
        Route("/api/stop", lambda request: _stop(answers, request), methods=["POST"]),
        Route("/api/{rest:path}", _unknown),
        Mount("/", StaticFiles(directory=STATIC, html=True, check_dir=False)),
    ]
    handlers: dict[Any, Any] = {HTTPException: _on_http, Exception: _on_fault}
    return Starlette(routes=routes, middleware=[Middleware(RequestGuard, access=access)], exception_handlers=handlers)


class Query:
    """The parameters of a request. Raises QueryError."""

    def __init__(self, request: Request) -> None:
        self._given = request.query_params

    def text(self, name: str) -> str:
        """A parameter that must be there."""
        if not (found := self._given.get(name)):
            raise QueryError(f"{name}: required, got nothing")
        return found

    def optional(self, name: str) -> str | None:
        """One that need not be there."""
        return self._given.get(name) or None

    def number(self, name: str) -> int:
        """A whole number that must be there."""
        return self._whole(name, self.text(name), _LARGEST)

    def optional_number(self, name: str, most: int = _LARGEST) -> int | None:
        """A whole number from 0 to `most` that need not be there."""
        found = self.optional(name)
        return None if found is None else self._whole(name, found, most)

    def _whole(self, name: str, given: str, most: int) -> int:
        if not (given.isascii() and given.isdecimal()) or len(given) > 16 or int(given) > most:
            raise QueryError(f"{name}: must be a whole number from 0 to {most}, got {given[:40]}")
        return int(given)


def _metrics(answers: Answers, query: Query) -> dict[str, Any]:
    names = query.optional("names")
    return answers.metrics(
        query.text("id"),
        None if names is None else names.split(","),
        query.optional_number("after"),
        query.optional_number("most", _MOST_ASKED) or MOST_POINTS,
        mean=query.optional_number("mean", 1) == 1,
    )


def _search(answers: Answers, query: Query) -> dict[str, Any]:
    return answers.search(
        query.text("id"),
        query.optional("text") or "",
        status=query.optional("status") or "",
        start=query.optional_number("from") or 0,
        most=query.optional_number("most", _MOST_HITS) or 50,
    )


def _sample(answers: Answers, query: Query) -> dict[str, Any]:
    return answers.sample(query.text("id"), query.number("step"), query.number("index"))


def _tokens(answers: Answers, query: Query) -> dict[str, Any]:
    return answers.tokens(query.text("id"), query.number("step"), query.number("index"))


_ANSWERS: dict[str, Callable[[Answers, Query], dict[str, Any]]] = {
    "runs": lambda answers, query: answers.runs(),
    "run": lambda answers, query: answers.run(query.text("id")),
    "metrics": _metrics,
    "samples": lambda answers, query: answers.samples(query.text("id")),
    "groups": lambda answers, query: answers.groups(query.text("id"), query.number("step")),
    "sample": _sample,
    "tokens": _tokens,
    "search": _search,
    "heldout": lambda answers, query: answers.held_out(query.text("id"), query.optional_number("prompt")),
    "config": lambda answers, query: answers.config(query.text("id"), query.optional("other")),
    "log": lambda answers, query: answers.log(query.text("id"), query.text("name"), query.optional_number("before")),
}


def _json(answers: Answers, answer: Callable[[Answers, Query], dict[str, Any]]) -> Callable[[Request], Response]:
    def respond(request: Request) -> Response:  # not async: it reads files, in a thread of its own
        return _said(lambda: answer(answers, Query(request)))

    return respond


def _said(ask: Callable[[], dict[str, Any]]) -> Response:
    """The answer, or what is wrong with the question in one line."""
    try:
        return Response(encoded(ask()), media_type="application/json")
    except QueryError as error:
        return refusal(400, str(error))
    except FileNotFoundError as error:
        return refusal(404, str(error))
    except TooMuchError as error:
        return refusal(400, str(error))
    except StopError as error:
        return refusal(409, str(error))


def _live(answers: Answers, request: Request, ending: Ending) -> Response:
    name = request.query_params.get("id") or None
    if name is not None:
        try:
            answers.opened(name)
        except FileNotFoundError as error:
            return refusal(404, str(error))
    mark = request.headers.get("last-event-id") or request.query_params.get("mark") or ""
    return StreamingResponse(live(answers, name, mark, ending), media_type="text/event-stream")


def _stop(answers: Answers, request: Request) -> Response:
    def stop() -> dict[str, Any]:
        stop_run(answers.below, answers.opened(Query(request).text("id")).directory)
        return {"stopped": True}

    return _said(stop)


def _unknown(request: Request) -> Response:
    return refusal(404, f"path: must be one of the API's, got {request.url.path[:200]}")


def _on_http(request: Request, error: HTTPException) -> Response:
    return refusal(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}")


def _on_fault(_: Request, error: Exception) -> Response:
    return refusal(500, f"the server has met a fault of its own ({type(error).__name__})")
