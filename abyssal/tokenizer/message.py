"""Messages: what people, assistants and tools say to one another, before any layout.

Their JSON is that of the chat completions API, which datasets use as well.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abyssal.errors import DataError

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the assistant asks for; arguments is JSON text as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Results of tools follow the calls in their order; tool_call_id is kept for the client and not
    rendered. A prefix message is an unfinished last one, which the model continues.

    Raises:
        DataError: a role is unknown, or a field belongs to another role.
    """

    role: str
    content: str | None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    prefix: bool = False

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise DataError(f"role={self.role!r}; choose one of {', '.join(_ROLES)}")
        owned = {
            "reasoning": self.reasoning is not None,
            "tool_calls": bool(self.tool_calls),
            "prefix": self.prefix,
        }
        stray = [field for field, is_set in owned.items() if is_set]
        if self.role != "assistant" and stray:
            raise DataError(f"a {self.role} message has {stray[0]}; only assistant messages may")
        if self.prefix and self.tool_calls:
            raise DataError(
                "a prefix message has tool_calls; an unfinished message cannot have them"
            )
        if self.content is None and not self.tool_calls and self.reasoning is None:
            raise DataError(f"a {self.role} message has no content; give a string, at least ''")

    @classmethod
    def from_dict(cls, fields: object) -> "Message":
        """A message from the JSON object of the API or of a dataset; other keys are ignored.

        The reasoning may be called reasoning_content, as in DeepSeek's API. Content may be a list
        of text parts, which are joined as they stand, and a developer speaks as the system.

        Raises:
            DataError: the object is not a message; the text says where.
        """
        if not isinstance(fields, Mapping):
            raise DataError(f"a message is {fields!r:.60}; a JSON object with a role was expected")
        role = _text_field(fields, "role")
        if role is None:
            raise DataError(f"a message has no role; choose one of {', '.join(_ROLES)}")
        prefix = fields.get("prefix")
        if prefix not in (None, True, False):
            raise DataError(f"prefix={prefix!r:.60}; true or false was expected")
        reasoning = _text_field(fields, "reasoning_content")
        calls = fields.get("tool_calls") or []
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise DataError(f"tool_calls={calls!r:.60}; a list of calls was expected")
        return cls(
            "system" if role == "developer" else role,
            _content(fields),
            reasoning if reasoning is not None else _text_field(fields, "reasoning"),
            tuple(_tool_call(call) for call in calls),
            _text_field(fields, "tool_call_id"),
            bool(prefix),
        )

    def to_dict(self) -> dict[str, object]:
        """The JSON object that from_dict reads and chat templates render; unset fields left out."""
        fields: dict[str, object] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            fields["reasoning_content"] = self.reasoning
        if self.tool_calls:
            fields["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        if self.prefix:
            fields["prefix"] = True
        return fields


def _text_field(fields: Mapping[object, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{name}={value!r:.60}; a string was expected")
    return value


def _content(fields: Mapping[object, object]) -> str | None:
    parts = fields.get("content")
    if not isinstance(parts, list | tuple):
        return _text_field(fields, "content")
    return "".join(map(_text_of_part, parts))


def _text_of_part(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise DataError(
            f'content has the part {part!r:.60}; a string was expected, or parts like {{"type": '
            f'"text", "text": "..."}}'
        )
    return text


def _tool_call(call: object) -> ToolCall:
    """A call in the API's shape; arguments may be an object in place of JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise DataError(f"a tool call is {call!r:.60}; an object with a function was expected")
    name = _text_field(function, "name")
    if not name:
        raise DataError("a tool call names no function; give function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise DataError(f"arguments={arguments!r:.60} of {name}; JSON text was expected")
    return ToolCall(name, arguments)
