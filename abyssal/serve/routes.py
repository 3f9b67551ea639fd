"""The routes: OpenAI's under /v1, DeepSeek's beside them, and what operators and people need.

Both dialects have the same handlers; which one speaks follows from the path.
"""

from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from abyssal.serve import answers
from abyssal.serve.chat import prompt_of
from abyssal.serve.description import describe, told
from abyssal.serve.faults import Dialect, dialect_of
from abyssal.serve.logprobs import token_text
from abyssal.serve.manual import HEADERS, manual
from abyssal.serve.metrics import CONTENT_TYPE
from abyssal.serve.model_card import REPORT_HEADERS
from abyssal.serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from abyssal.serve.service import Service
from abyssal.serve.ticket import LIFE_S


def add_generation(router: APIRouter, service: Service) -> None:
    """Chats and texts."""

    async def chat(request: Request) -> Response:
        """Answer a conversation; with stream, as server-sent events."""
        return await service.chat(request)

    async def complete(request: Request) -> Response:
        """Continue texts, score them (echo with logprobs), or fill in a middle (suffix)."""
        return await service.complete(request)

    for base in ("/v1", "", "/beta"):
        chats = told(answers.ChatAnswer, ChatRequest, streams=True)
        router.post(f"{base}/chat/completions", **chats)(chat)
        texts = told(answers.TextAnswer, CompletionRequest, streams=True)
        router.post(f"{base}/completions", **texts)(complete)


def add_tokens(router: APIRouter, service: Service) -> None:
    """Text to tokens and back, as vLLM's server has it."""
    llm, settings = service.llm, service.settings

    @router.post("/tokenize", **told(answers.TokenizeAnswer, TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """The tokens of a text, or of a conversation as the model reads it."""
        body = await service.read(request, TokenizeRequest)
        service.check_model(body.model, "openai")
        found = await service.beside(partial(prompt_of, body, llm, settings))
        names = [token_text(llm.tokenizer, token) for token in found]
        return _json(
            {
                "count": len(found),
                "max_model_len": llm.config.max_position_embeddings,
                "tokens": found,
                "token_strs": names if body.return_token_strs else None,
            }
        )

    @router.post("/detokenize", **told(answers.DetokenizeAnswer, DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        """The text of tokens; control tokens show their names."""
        body = await service.read(request, DetokenizeRequest)
        service.check_model(body.model, "openai")
        decode = partial(llm.tokenizer.decode, body.tokens, skip_control=False)
        return _json({"prompt": await service.beside(decode)})


def add_facts(router: APIRouter, service: Service) -> None:
    """What clients look up before they ask."""

    async def models(request: Request) -> Response:
        """The model that is served, under each of its names."""
        dialect = dialect_of(request.url.path)
        return _json(
            {"object": "list", "data": [_model(service, x, dialect) for x in service.models]}
        )

    async def model(request: Request, model: str) -> Response:
        """One of these names."""
        dialect = dialect_of(request.url.path)
        service.check_model(model, dialect)
        return _json(_model(service, model, dialect))

    for base in ("/v1", ""):
        router.get(f"{base}/models", **told(answers.ModelsAnswer))(models)
        router.get(f"{base}/models/{{model:path}}", **told(answers.ModelAnswer))(model)
    router.get("/beta/models", **told(answers.ModelsAnswer))(models)

    @router.get("/user/balance", **told(answers.BalanceAnswer))
    async def balance() -> Response:
        """Always available and always zero: a server of your own takes no money."""
        nothing = dict.fromkeys(("total_balance", "granted_balance", "topped_up_balance"), "0.00")
        return _json({"is_available": True, "balance_infos": [{"currency": "USD", **nothing}]})


def add_model(router: APIRouter, service: Service) -> None:
    """What people look up about the model."""

    @router.get("/model", **told(answers.ModelCardAnswer))
    async def card() -> Response:
        """The model's config, parameters and tokenizer, and the curves of its training."""
        return _json(await service.beside(service.card.to_dict))

    fault = {"schema": {"$ref": f"#/components/schemas/{answers.ErrorAnswer.__name__}"}}
    missing = {"description": "There is none.", "content": {"application/json": fault}}

    extra = {"parameters": [_TICKET]}

    @router.get(_REPORT, response_class=HTMLResponse, responses={404: missing}, openapi_extra=extra)
    async def report() -> Response:
        """The page that training wrote about it; 404 where there is none."""
        page = await service.beside(service.card.report)
        return HTMLResponse(page, headers=REPORT_HEADERS)

    @router.get(f"{_REPORT}/ticket", **told(answers.TicketAnswer))
    async def ticket() -> Response:
        """A ticket for a link to the report, which a tab opens without a key."""
        given = {"ticket": service.tickets.give(_REPORT), "expires_in_s": LIFE_S}
        return JSONResponse(given, headers={"cache-control": "no-store"})


_REPORT = "/model/report"
_TICKET = {
    "name": "ticket",
    "in": "query",
    "schema": {"type": "string"},
    "description": "In place of a key.",
}


class MetricsResponse(Response):
    """Text as Prometheus reads it."""

    media_type = CONTENT_TYPE


def add_operation(router: APIRouter, service: Service, app: FastAPI) -> None:
    """How it goes, and what there is."""

    @router.get("/health")
    async def health() -> Response:
        """200 while requests are taken, 503 once they are not."""
        if service.bridge.is_healthy:
            return _json({"status": "ok"})
        status = "draining" if service.bridge.is_draining else "failed"
        return JSONResponse({"status": status}, 503)

    @router.get("/metrics", response_class=MetricsResponse)
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        text = service.metrics.text(await service.bridge.stats())
        return MetricsResponse(text)

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        """The description of all routes, for programs."""
        return _json(describe(app))

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """The description of all routes, for people."""
        return HTMLResponse(manual(describe(app)), headers=HEADERS)


def _model(service: Service, name: str, dialect: Dialect) -> dict[str, Any]:
    if dialect == "deepseek":
        return {"id": name, "object": "model", "owned_by": "abyssal"}
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "abyssal",
        "root": service.settings.name,
        "max_model_len": service.llm.config.max_position_embeddings,
    }


def _json(value: dict[str, Any]) -> JSONResponse:
    return JSONResponse(value)
