"""What a request may say: both services' fields, their types and ranges, and a fault for the rest.

Types are strict: true is not 1, "1" is not 1, and every number is finite. null means that a field
was left out. Fields that nobody here knows are ignored, as both services do, except those that
would have changed the answer: to write something else than was asked for, in silence, is worse
than to refuse.
"""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from abyssal.engine.request import MAX_LOGPROBS
from abyssal.serve.complaint import fault_of
from abyssal.serve.faults import Dialect, invalid, malformed, quote
from abyssal.serve.fields import (
    MAX_INT,
    Biases,
    Body,
    Count,
    Prompts,
    Stops,
    Text,
    TokenId,
    refuse,
)
from abyssal.serve.limits import check_sizes, check_supported
from abyssal.serve.parts import (
    ChatMessage,
    NamedTool,
    ResponseFormat,
    TemplateValues,
    Thinking,
    ToolChoice,
    ToolField,
)
from abyssal.serve.settings import Settings

M = TypeVar("M", bound=Body)


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool | None = None


class Sampling(Body):
    """What chat and text completions have in common. Extras of vLLM's come last."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    logit_bias: Biases | None = None
    user: str | None = None

    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None  # -1 and 0: all
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None
    bad_words: Annotated[list[Text], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            refuse(" is for streams only; set stream to true or leave it out", ".stream_options")
        return self


class ChatRequest(Sampling):
    """POST /v1/chat/completions, and DeepSeek's /chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Count | None = None  # OpenAI's new name of max_tokens
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolField], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    thinking: Thinking | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None  # none: do not think; how long is up to the model
    )
    chat_template_kwargs: TemplateValues | None = None
    insight: bool | None = None  # ours: how each token came about

    @property
    def most_tokens(self) -> int | None:
        """The most tokens to write, under either name; None: as many as fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def thinks(self) -> bool | None:
        """Whether the answer shall open with thoughts; None: not said."""
        said = _thinking_said(self)
        return said[0] if said else None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            refuse(" needs logprobs; set logprobs to true", ".top_logprobs")
        if self.max_completion_tokens not in (None, self.max_tokens) and self.max_tokens:
            refuse(" is another name of max_tokens; give one of them", ".max_completion_tokens")
        if len(set(_thinking_said(self))) > 1:
            refuse(" contradicts another field about thinking; give one of them", ".thinking")
        for place, message in enumerate(self.messages[:-1]):
            if message.prefix:
                refuse(" is for the last message only", f".messages.{place}.prefix")
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        for place, name in enumerate(names):
            if name in names[:place]:
                field = f".tools.{place}.function.name"
                refuse(f"={quote(name)} is there twice; give each function its own", field)
        choice = self.tool_choice
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            reason = f"={quote(choice.function.name)}, but no tool has this name"
            refuse(reason, ".tool_choice.function.name")
        if choice == "required" and not names:
            refuse('="required", but there are no tools; give some', ".tool_choice")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions, and DeepSeek's /beta/completions, which fills in the middle."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None  # 0: only echo
    suffix: str | None = None  # what comes after the text to be written
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1024)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            refuse("=0 leaves nothing to answer; give at least 1, or set echo", ".max_tokens")
        if self.best_of not in (None, self.n or 1):
            refuse(f"={self.best_of}, but answers are not ranked here; leave it out", ".best_of")
        if self.suffix is not None and self.echo:
            refuse(" does not go with suffix; leave one of them out", ".echo")
        if self.suffix is not None and not all(isinstance(one, str) for one in self.prompt):
            refuse(" needs a prompt of text, not of token ids", ".suffix")
        return self


class TokenizeRequest(Body):
    """POST /tokenize: the tokens of a text, or of a conversation as the model reads it."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True  # begin-of-sentence before a prompt
    return_token_strs: bool | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    add_generation_prompt: bool = True
    tools: Annotated[list[ToolField], Field(fail_fast=True)] | None = None
    chat_template_kwargs: TemplateValues | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            refuse(" or messages: give one of them", ".prompt")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize: the text of tokens."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


def parse(schema: type[M], body: object, dialect: Dialect, settings: Settings) -> M:
    """A body as the request it should be.

    Raises:
        Fault: it is not one; param is the path to the first mistake, such as ``messages.0.role``.
    """
    if not isinstance(body, dict):
        raise malformed(f"the body is {quote(body)}, expected a JSON object")
    check_supported(schema.model_fields.keys(), body, dialect)
    check_sizes(body, dialect, settings)
    try:
        request = schema.model_validate(body)
    except ValidationError as problem:
        raise fault_of(problem, dialect) from None
    _check_answers(request, dialect, settings)
    return request


def _check_answers(request: Body, dialect: Dialect, settings: Settings) -> None:
    """Refuse more answers than one request may ask for."""
    if not isinstance(request, Sampling):
        return
    n = request.n or 1
    if n > settings.max_n:
        raise invalid(f"n={n}, expected at most {settings.max_n}", dialect, param="n")
    prompts = len(request.prompt) if isinstance(request, CompletionRequest) else 1
    if n * prompts > settings.max_answers:
        message = f"{prompts} prompts with n={n}, expected at most {settings.max_answers} answers"
        raise invalid(f"{message}; send several requests", dialect, param="prompt")


def _thinking_said(request: ChatRequest) -> list[bool]:
    """Everything a request says about whether to think."""
    kwargs = request.chat_template_kwargs or TemplateValues()
    said = [kwargs.thinking, kwargs.enable_thinking]
    if request.thinking is not None:
        said.append(request.thinking.type == "enabled")
    if request.reasoning_effort == "none":
        said.append(False)
    return [one for one in said if one is not None]
