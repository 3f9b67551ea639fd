"""What no request gets, whatever its schema: lists without end, and fields that nobody serves."""

from collections.abc import Collection, Mapping

from abyssal.serve.faults import Dialect, invalid
from abyssal.serve.settings import Settings


def check_supported(known: Collection[str], body: Mapping[str, object], dialect: Dialect) -> None:
    """Refuse fields that are not known here and would have changed the answer.

    Raises:
        Fault: it names the first such field and what to do instead.
    """
    for name, (remedy, neutral) in _FOREIGN.items():
        value = body.get(name)
        if value and name not in known and value not in neutral:
            message = f"{name} is not supported here; {remedy}"
            raise invalid(message, dialect, param=name, code="unsupported_parameter")


def check_sizes(body: Mapping[str, object], dialect: Dialect, settings: Settings) -> None:
    """Refuse long lists and long stop texts before anything reads what is in them.

    Raises:
        Fault: it names the field, its size and the limit.
    """
    limits = {
        "messages": settings.max_messages,
        "tools": settings.max_tools,
        "stop": settings.max_stops,
        "bad_words": settings.max_words,
        "stop_token_ids": settings.max_words,
        "logit_bias": settings.max_words,
    }
    for name, most in limits.items():
        value = body.get(name)
        if isinstance(value, list | dict) and len(value) > most:
            message = f"{name} has {len(value)} entries, at most {most} are taken"
            raise invalid(message, dialect, param=name)
    for name in ("stop", "bad_words"):
        value = body.get(name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and len(text) > settings.max_stop_chars:
                most = settings.max_stop_chars
                message = f"{name} has a text of {len(text)} characters, at most {most} are taken"
                raise invalid(message, dialect, param=name)


# Fields of other services that would change the answer: what to do instead, and the values that
# ask for nothing (besides null, false and empty ones).
_RESPONSE_FORMAT = "use response_format"
_CHATS = "use /v1/chat/completions"
_COMPLETIONS = "use /v1/completions"
_FOREIGN: dict[str, tuple[str, tuple[object, ...]]] = {
    # Of chats in completions, and the other way round
    **dict.fromkeys(("messages", "response_format", "tools", "tool_choice"), (_CHATS, ())),
    **dict.fromkeys(("prompt", "suffix", "echo"), (_COMPLETIONS, ())),
    "functions": ("use tools", ()),
    "function_call": ("use tool_choice", ("none", "auto")),
    "audio": ("only text is written", ()),
    "modalities": ("only text is written", (["text"],)),
    "web_search_options": ("put what was found into the messages", ()),
    "guided_json": (_RESPONSE_FORMAT, ()),
    "guided_regex": (_RESPONSE_FORMAT, ()),
    "guided_choice": (_RESPONSE_FORMAT, ()),
    "guided_grammar": (_RESPONSE_FORMAT, ()),
    "structured_outputs": (_RESPONSE_FORMAT, ()),
    "chat_template": ("the model's own layout is used", ()),
    "continue_final_message": ("set prefix on the last message", ()),
    "documents": ("put them into the messages", ()),
    "min_tokens": ("leave it out", ()),
    "length_penalty": ("answers are not ranked here", (1,)),
    "use_beam_search": ("leave it out", ()),
    "logits_processors": ("use logit_bias", ()),
    "allowed_token_ids": ("use logit_bias", ()),
    "prompt_embeds": ("send text or token ids", ()),
    "prompt_logprobs": ("use /v1/completions with echo and logprobs", ()),
    "truncate_prompt_tokens": ("send a shorter prompt", ()),
}
