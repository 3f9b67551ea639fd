"""The application: routes behind the guard, and every failure as an error object."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abyssal.engine.llm import LLM
from abyssal.errors import AbyssalError, OverloadedError
from abyssal.serve import routes
from abyssal.serve.faults import Fault, dialect_of, from_error, from_status, internal
from abyssal.serve.guard import Guard
from abyssal.serve.history import add_history
from abyssal.serve.page import add_page
from abyssal.serve.service import Service
from abyssal.serve.settings import Settings
from abyssal.serve.store import Store

logger = logging.getLogger(__name__)


def create_app(
    llm: LLM, settings: Settings, max_waiting: int | None = None, history: Store | None = None
) -> FastAPI:
    """The service around one model; max_waiting bounds the answers that wait behind running ones.

    history keeps chats; whoever opened it closes it, once the application is down.
    From the application's startup to its shutdown the engine belongs to a thread of the service:
    nobody else may generate with this LLM meanwhile.
    """
    service = Service(llm, settings, max_waiting, history)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.bridge.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="Abyssal",
        version="1",  # of the API, as in /v1
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    # Onto the application's own router: one that is included would hide its paths from app.routes,
    # and so from the test that every one of them has an auth class.
    routes.add_generation(app.router, service)
    routes.add_tokens(app.router, service)
    routes.add_facts(app.router, service)
    routes.add_model(app.router, service)
    add_history(app.router, service)
    routes.add_operation(app.router, service, app)
    add_page(app.router)
    for kind in (Fault, AbyssalError, HTTPException):
        app.add_exception_handler(kind, _refuse)
    app.add_middleware(_Unexpected)
    app.add_middleware(Guard, settings=settings, tickets=service.tickets)
    return app


async def _refuse(request: Request, problem: Exception) -> Response:
    """The reply to a request that cannot be served."""
    if isinstance(problem, HTTPException):
        allowed = (problem.headers or {}).get("Allow")
        return from_status(problem.status_code, allowed).to_response()
    if isinstance(problem, OverloadedError):
        request.app.state.service.metrics.refuse()
    if isinstance(problem, AbyssalError):
        problem = from_error(problem, dialect_of(request.url.path))
    assert isinstance(problem, Fault)
    return problem.to_response()


class _Unexpected:
    """Middleware: a bug becomes a line in the log and, while there is still time, a status 500."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let everything through."""
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http":
                raise
            request_id = scope["state"]["request_id"]
            logger.exception("request failed", extra={"fields": {"request_id": request_id}})
            if has_begun:
                raise  # the connection breaks, which is all that is left to tell the client
            await internal().to_response()(scope, receive, send)
