"""The routes for people: one page made from the OpenAPI description, which loads nothing.

No script, no style sheet and no font from elsewhere, so it works without a network.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font-family: ui-monospace, monospace; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { border-bottom: 1px solid #8884; padding: .25rem .5rem; text-align: left;
  vertical-align: top; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } a { color: #8bf; } }
"""


def manual(description: Mapping[str, Any]) -> str:
    """The page."""
    title = escape(description["info"]["title"])
    schemas = description["components"]["schemas"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style><h1>{title}</h1>",
        "<p>The same for programs: <a href=openapi.json>openapi.json</a>.</p>",
        *(_route(*one) for one in _operations(description)),
        "<h2>Objects</h2>",
        *(_object(name, schemas[name]) for name in sorted(schemas)),
    ]
    return "\n".join(parts)


def _operations(description: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    told = escape(operation.get("description", ""))
    takes = _links(operation.get("requestBody", {}))
    gives = _links(operation["responses"].get("200", {}))
    takes, gives = (f" {a} {b}." if b else "" for a, b in (("Takes", takes), ("Gives", gives)))
    return f"<h2><code>{method} {escape(path)}</code></h2><p>{told}{takes}{gives}</p>"


def _object(name: str, schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{_kind(value)}"
        f"<td>{'required' if field in needed else ''}"
        for field, value in schema.get("properties", {}).items()
    )
    told = escape(schema.get("description", ""))
    table = f"<table>{rows}</table>" if rows else ""
    summary = f"<summary><code>{escape(name)}</code></summary>"
    return f"<details open id='{escape(name)}'>{summary}<p>{told}</p>{table}</details>"


def _links(part: Mapping[str, Any]) -> str:
    schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    return _kind(schema) if "$ref" in schema else ""


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[word]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(repr(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything"))) + _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    signs = {
        "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"
    }  # fmt: skip
    return "".join(f" {sign} {schema[name]}" for name, sign in signs.items() if name in schema)
