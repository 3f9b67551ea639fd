"""The OpenAPI description of the routes, bodies included.

The routes read their bodies themselves, with limits no framework has, so their schemas are put into
the description here.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from abyssal.serve.answers import ErrorAnswer
from abyssal.serve.fields import Body
from abyssal.serve.history_schema import ChatChange, MessageChange, SavedHistory
from abyssal.serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_BODIES = (
    ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, ChatChange, MessageChange,
    SavedHistory,
)  # fmt: skip
_WHERE = "#/components/schemas/{model}"


def describe(app: FastAPI) -> dict[str, Any]:
    """The description as one JSON object; made once."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, bodies = models_json_schema(
            [(body, "validation") for body in _BODIES], ref_template=_WHERE
        )
        parts = found.setdefault("components", {})
        parts.setdefault("schemas", {}).update(bodies["$defs"])
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{}, {"key": []}]
        app.openapi_schema = found
    return app.openapi_schema


def told(
    answer: type[BaseModel] | None,
    body: type[Body] | None = None,
    *,
    streams: bool = False,
    parameters: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """What the description says about a route, as FastAPI takes it.

    parameters are the values of a query, as OpenAPI has them.
    """
    fault = {"model": ErrorAnswer, "description": "What is wrong, and what to do."}
    responses: dict[int | str, dict[str, Any]] = {"4XX": fault}
    if answer is not None:
        responses[200] = {"model": answer}
    if streams:
        events = {"schema": {"type": "string"}}
        responses[200]["content"] = {"text/event-stream": events}
        responses["5XX"] = fault
    extra: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        content = {"application/json": {"schema": schema}}
        extra["requestBody"] = {"required": True, "content": content}
    return {"responses": responses, "openapi_extra": extra}
