"""A chat request made ready for the engine: conversation to tokens, wishes to values and a grammar.

What an answer must look like is one grammar: the calls of tools that must be used, or the JSON that
response_format asks for. It begins where the answer does, behind the thoughts if there are any.
"""

import json
from itertools import groupby

from abyssal.engine.llm import LLM
from abyssal.engine.request import MAX_LOGPROBS, Grammar
from abyssal.errors import DataError
from abyssal.serve.faults import Dialect
from abyssal.serve.parts import ChatMessage, NamedTool, TemplateValues, ToolField
from abyssal.serve.sampling import Prepared, sampling_params
from abyssal.serve.schema import ChatRequest, TokenizeRequest
from abyssal.serve.settings import Settings
from abyssal.serve.thinking import reasoner, wants_thoughts
from abyssal.tokenizer.bpe import END_THINK, TOOL_CALLS_BEGIN, USER
from abyssal.tokenizer.chat import render
from abyssal.tokenizer.message import Message
from abyssal.tokenizer.tools import Tool, call_grammar

DEEPSEEK_MAX_TOKENS = 4096  # where a request of DeepSeek's dialect does not say


def prepare(body: ChatRequest, llm: LLM, settings: Settings, dialect: Dialect) -> Prepared:
    """The prompt and the sampling values of a chat request. Slow for long ones: not on the loop.

    Raises:
        Fault, RequestError, DataError: it cannot be served.
    """
    layout = settings.layout
    thinking = wants_thoughts(body.thinks, reasoner(body), layout, dialect)
    tools = [] if body.tool_choice == "none" else tools_of(body.tools)
    messages = messages_of(body.messages)
    most = body.most_tokens
    if most is None:
        context = llm.config.max_position_embeddings
        most = DEEPSEEK_MAX_TOKENS if dialect == "deepseek" else context
    params = sampling_params(
        body,
        settings,
        max_tokens=most,
        logprobs=MAX_LOGPROBS if body.logprobs else None,
        insight=bool(body.insight),
        grammar=_grammar(body, tools, llm, settings, thinking),
        stop_token_ids=(llm.tokenizer.control(USER),),
        forbidden=_forbidden(body, llm),
    )
    prompt = llm.prompts.render(messages, layout, thinking, tools)
    return Prepared([prompt], params, layout=layout if tools else None)


def prompt_of(body: TokenizeRequest, llm: LLM, settings: Settings) -> list[int]:
    """The tokens that /tokenize asks for.

    Raises:
        Fault, DataError: the conversation is impossible.
    """
    if body.messages is None:
        return llm.tokenizer.encode(body.prompt or "", bos=body.add_special_tokens)
    said = body.chat_template_kwargs or TemplateValues()
    asked = said.enable_thinking if said.thinking is None else said.thinking
    thinking = wants_thoughts(asked, False, settings.layout, "openai")
    return render(
        messages_of(body.messages),
        llm.tokenizer,
        settings.layout,
        thinking,
        body.add_generation_prompt,
        tools_of(body.tools),
    ).tokens


def messages_of(fields: list[ChatMessage]) -> list[Message]:
    """The conversation of a request, results in the order of the calls they answer.

    No ids reach the model, which knows results by their order.

    Raises:
        DataError: a result answers no call.
    """
    ordered: list[ChatMessage] = []
    for is_result, run in groupby(fields, key=lambda message: message.role == "tool"):
        turns = list(run)
        if is_result:
            calls = (ordered[-1].tool_calls or []) if ordered else []
            turns = _in_order(turns, [call.id for call in calls])
        ordered += turns
    return [Message.from_dict(message.model_dump(exclude_none=True)) for message in ordered]


def _in_order(results: list[ChatMessage], calls: list[str | None]) -> list[ChatMessage]:
    """Results sorted by the calls they answer; calls without ids are answered in order."""
    if None in calls:
        return results
    stray = [message.tool_call_id for message in results if message.tool_call_id not in calls]
    if stray:
        raise DataError(
            f"tool_call_id={stray[0]!r:.60} answers no call of the message before it; send the "
            "assistant's message with its tool_calls, then one result for each"
        )
    return sorted(results, key=lambda message: calls.index(message.tool_call_id))


def tools_of(fields: list[ToolField] | None) -> list[Tool]:
    """The functions of a request."""
    return [Tool.from_dict(tool.model_dump(exclude_none=True)) for tool in fields or ()]


def _grammar(
    body: ChatRequest, tools: list[Tool], llm: LLM, settings: Settings, thinking: bool
) -> Grammar | None:
    """What the answer must look like; None: anything."""
    after = llm.tokenizer.control(END_THINK) if thinking else None
    name = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    must_call = name is not None or body.tool_choice == "required"
    schema = _answer_schema(body)
    if not tools or (not must_call and schema is None):
        if any(tool.strict for tool in tools) or (tools and body.parallel_tool_calls is False):
            after = llm.tokenizer.control(TOOL_CALLS_BEGIN)  # or the model just answers
        elif schema is None:
            return None
        else:
            return Grammar(kind="json_schema", source=schema, after=after)
    parallel = body.parallel_tool_calls is not False and name is None
    source = call_grammar(
        tools, settings.layout, llm.tokenizer, required_name=name, parallel=parallel,
        optional=not must_call and schema is None,
    )  # fmt: skip
    if schema is not None and not must_call:
        calls = source.replace("start:", "calls:", 1)
        source = f"start: calls | answer\nanswer: %json {schema}\n{calls}"
    return Grammar(kind="lark", source=source, after=after)


def _answer_schema(body: ChatRequest) -> str | None:
    """What response_format asks for, as a JSON Schema's text."""
    form = body.response_format
    if form is None or form.type == "text":
        return None
    return (
        '{"type": "object"}' if form.json_schema is None else json.dumps(form.json_schema.schema_)
    )


def _forbidden(body: ChatRequest, llm: LLM) -> tuple[int, ...]:
    """With tool_choice none a model that has learned to call tools must not begin to."""
    if not body.tools or body.tool_choice != "none":
        return ()
    return (llm.tokenizer.control(TOOL_CALLS_BEGIN),)
