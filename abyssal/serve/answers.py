"""What the routes answer, for the description at /openapi.json; the routes themselves write JSON.

Every field of DeepSeek's that OpenAI's clients do not know stands beside theirs.
"""

from typing import Literal

from pydantic import BaseModel

FinishReason = Literal[
    "stop", "length", "tool_calls", "content_filter", "insufficient_system_resource"
]


class ErrorObject(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Any answer with a status of 400 or above."""

    error: ErrorObject


class PromptDetails(BaseModel):
    """OpenAI's account of the prefix cache."""

    cached_tokens: int


class CompletionDetails(BaseModel):
    """What was written inside the thoughts."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens read and written; hits and misses of the prefix cache add up to the prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class TopLogprob(BaseModel):
    """One token that might have been written."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """One token that was written."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Every token of the answer, and of the thoughts before it."""

    content: list[TokenLogprob] | None
    reasoning_content: list[TokenLogprob] | None = None


class CalledFunction(BaseModel):
    """arguments is JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolCallAnswer(BaseModel):
    """A function the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallAnswer] | None = None


class TokenInsight(BaseModel):
    """How one token came about: the experts, best first, that each MoE layer chose in the row whose
    scores it was drawn from, and whether the MTP module had guessed it."""

    experts: list[list[int]]
    drafted: bool


class InsightSummary(BaseModel):
    """What an answer took; the mark of its end counts.

    Bytes are those of the cache in use, in its precision; full attention would keep every head's
    own key and value. cache_bytes is the whole pages of prompt and answer. drafted are guesses
    verified, accepted those that were right. tokens_per_s is measured from the first token on.
    """

    prompt_tokens: int
    cached_tokens: int
    latent_bytes_per_token: int
    full_attention_bytes_per_token: int
    cache_bytes: int
    moe_layers: list[int]
    n_routed_experts: int
    num_experts_per_tok: int
    drafted: int
    accepted: int
    time_to_first_token_s: float | None
    tokens_per_s: float | None


class ChatInsight(BaseModel):
    """Every token of thoughts and answer in order; in a stream, those since the last chunk, and the
    summary on the last one."""

    tokens: list[TokenInsight]
    summary: InsightSummary | None = None


class ChatChoice(BaseModel):
    """One of the n answers."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    insight: ChatInsight | None = None  # if asked for


class ChatAnswer(BaseModel):
    """The answer of /v1/chat/completions when it is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(BaseModel):
    """Four lists of one entry per token; the first token of an echoed prompt has null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One answer to one prompt."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: TextLogprobs | None = None


class TextAnswer(BaseModel):
    """The answer of /v1/completions when it is not streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[TextChoice]
    usage: Usage


class ModelAnswer(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int | None = None
    owned_by: str


class ModelsAnswer(BaseModel):
    """All of them: one."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class ParameterPart(BaseModel):
    """Parameters that do one thing."""

    name: str
    count: int


class ParameterCounts(BaseModel):
    """Parts sum to the total; active are those that one token meets, the embedding included; the
    MTP modules come on top."""

    total: int
    active: int
    parts: list[ParameterPart]
    mtp: int


class TokenizerFacts(BaseModel):
    """The tokenizer; sha256 is of its vocabulary and merges."""

    vocab_size: int
    sha256: str


class ModelCardAnswer(BaseModel):
    """What is known of the model. Curves are lists of (tokens seen, value), with steps where
    tokens were not written down, of at most 400 points."""

    id: str
    folder: str | None
    config: dict[str, object]
    parameters: ParameterCounts
    tokenizer: TokenizerFacts
    layout: str
    layouts: list[str]
    thinking: bool
    max_model_len: int
    curves: dict[str, list[tuple[float, float]]]
    report: bool


class TicketAnswer(BaseModel):
    """A ticket for a link, good for so many seconds."""

    ticket: str
    expires_in_s: int


class TokenizeAnswer(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeAnswer(BaseModel):
    """The text of tokens."""

    prompt: str


class BalanceInfo(BaseModel):
    """Amounts are texts, as DeepSeek has them."""

    currency: Literal["CNY", "USD"]
    total_balance: str
    granted_balance: str
    topped_up_balance: str


class BalanceAnswer(BaseModel):
    """What DeepSeek's clients look at before they ask; here nothing costs."""

    is_available: bool
    balance_infos: list[BalanceInfo]
