"""The OpenAPI description of the routes, bodies included.

The routes read their bodies themselves, with limits no framework has, so their schemas are put into
the description here.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from abyssal.serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_BODIES = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
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
