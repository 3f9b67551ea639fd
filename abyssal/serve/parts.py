"""What chat requests are made of: messages, tools, the form of an answer, whether it thinks."""

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from abyssal.serve.complaint import NAMED, WORD
from abyssal.serve.fields import (
    Body,
    Content,
    FunctionCall,
    FunctionField,
    FunctionName,
    SchemaFormat,
    refuse,
)


class ToolCallField(Body):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    """One turn; dump it with exclude_none for Message.from_dict."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    reasoning_content: str | None = None  # DeepSeek's, accepted back in history
    tool_calls: Annotated[list[ToolCallField], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None  # DeepSeek's: the model continues this message

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.role != "assistant":
            if self.content is None:
                refuse(f" is missing; a {self.role} message needs a text", ".content")
            for field in ("tool_calls", "reasoning_content", "prefix"):
                if getattr(self, field):
                    refuse(f" is for assistant messages; the role is {self.role}", f".{field}")
        elif self.content is None and not self.tool_calls and self.reasoning_content is None:
            refuse(" is missing; an assistant message needs a text or tool_calls", ".content")
        if self.prefix and self.tool_calls:
            refuse(" is for unfinished texts; this message has tool_calls", ".prefix")
        if self.role == "tool" and not self.tool_call_id:
            refuse(" is missing; name the call this is the result of", ".tool_call_id")
        return self


class ToolField(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionField


class NamedTool(Body):
    """tool_choice when one function must be called."""

    type: Literal["function"]
    function: FunctionName


class ResponseFormat(Body):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            refuse(" is missing; give an object with name and schema", ".json_schema")
        return self


class Thinking(Body):
    """DeepSeek's switch."""

    type: Literal["enabled", "disabled"]


class TemplateValues(Body):
    """vLLM's way to the same switch, under both of its names."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(WORD)] | Annotated[NamedTool, Tag(NAMED)],
    Discriminator(lambda value: NAMED if isinstance(value, dict | NamedTool) else WORD),
]
