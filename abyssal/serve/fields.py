"""The kinds of values that requests are made of, wider than JSON's own: texts, prompts, functions.

Where an API takes one thing in several shapes (a stop text or a list of them, a message as a text
or in parts) the shapes are made one here, and a fault names the place inside.
"""

from typing import Annotated, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from abyssal.serve.faults import quote

MAX_INT = 2**63 - 1


class Body(BaseModel):
    """Any object of a request."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def refuse(reason: str, place: str = "") -> NoReturn:
    """Refuse what a validator was given; place is where in it, such as ``.0.type``."""
    raise PydanticCustomError("house", "{reason}", {"reason": reason, "place": place})


def _listed(value: object) -> object:
    """One text stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _text_of(value: object) -> str | None:
    """The content of a message: a text, null, or text parts, which are joined."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        refuse(f"={quote(value)}, expected a text or a list of text parts")
    texts = []
    for place, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            refuse(f"={quote(kind)}, expected 'text'; only text can be read", f".{place}.type")
        text = part.get("text")
        if not isinstance(text, str):
            refuse(f"={quote(text)}, expected a text", f".{place}.text")
        texts.append(text)
    return "".join(texts)


def _prompts_of(value: object) -> list[str | list[int]]:
    """The prompts of a completion: a text, token ids, or a list of either."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        refuse(f"={quote(value)}, expected a text, token ids, or a list of either; at least one")
    if not isinstance(value[0], str | list):
        _check_ids(value, "")
        return [value]
    for place, prompt in enumerate(value):
        if isinstance(prompt, list):
            _check_ids(prompt, f".{place}")
        elif not isinstance(prompt, str):
            refuse(f"={quote(prompt)}, expected a text or a list of token ids", f".{place}")
    return value


def _check_ids(ids: list[object], place: str) -> None:
    if not ids:
        refuse(" is empty, expected at least one token id", place)
    for index, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < 2**31:
            refuse(f"={quote(token)}, expected a token id", f"{place}.{index}")


def _biases_of(value: object) -> dict[int, float]:
    """logit_bias with its keys as numbers."""
    if not isinstance(value, dict):
        refuse(f"={quote(value)}, expected an object of token ids and numbers")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            refuse(f" has the key {quote(key)}, expected a token id such as '42'")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            refuse(f" has {quote(bias)} for {key}, expected a number from -100 to 100")
        if int(key) in biases:
            refuse(f" names the token {int(key)} twice; name it once")
        biases[int(key)] = float(bias)
    return biases


_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": _TEXT},
        "required": ["type", "text"],
    },
}
_BIAS = {"type": "number", "minimum": -100, "maximum": 100}

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Count = Annotated[int, Field(ge=1, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Stops = Annotated[
    list[Text],
    Field(fail_fast=True),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 16}]}),
]
Content = Annotated[
    str | None,
    PlainValidator(_text_of),
    WithJsonSchema({"anyOf": [_TEXT, _PARTS, {"type": "null"}]}),
]
Prompts = Annotated[
    list[str | list[int]],
    PlainValidator(_prompts_of),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                _IDS,
                {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1},
            ]
        }
    ),
]
Biases = Annotated[
    dict[int, float],
    PlainValidator(_biases_of),
    WithJsonSchema({"type": "object", "additionalProperties": _BIAS}),
]


# Objects inside others' objects


class FunctionCall(Body):
    """A function that was called; arguments is JSON text as the model wrote it."""

    name: Name
    arguments: str


class FunctionField(Body):
    """A function the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, object] | None = None  # JSON Schema of its arguments
    strict: bool | None = None


class FunctionName(Body):
    """A function that must be called."""

    name: Name


class SchemaFormat(Body):
    """The json_schema of a response_format."""

    name: Name
    description: str | None = None
    schema_: Annotated[dict[str, object], Field(alias="schema")]
    strict: bool | None = None
