"""A text completion made ready for the engine: continue a text, score it, or fill its middle.

    prompt [.. suffix]   <bos> prompt          <bos> <fim_begin> prompt <fim_hole> suffix <fim_end>

With echo and logprobs the prompt's own tokens are scored, which is what likelihood evaluations ask
for; max_tokens may then be 0.
"""

from abyssal.engine.llm import LLM
from abyssal.errors import RequestError
from abyssal.serve.faults import Dialect, invalid
from abyssal.serve.sampling import Prepared, sampling_params
from abyssal.serve.schema import CompletionRequest
from abyssal.serve.settings import Settings
from abyssal.tokenizer.bpe import FIM_BEGIN, FIM_END, FIM_HOLE, Tokenizer

OPENAI_MAX_TOKENS = 16  # where a request of that dialect does not say
DEEPSEEK_MAX_TOKENS = 4096


def prepare(body: CompletionRequest, llm: LLM, settings: Settings, dialect: Dialect) -> Prepared:
    """The prompts and sampling values of a completion. Slow for long ones: not on the loop.

    Raises:
        Fault, RequestError, DataError: it cannot be served.
    """
    most = body.max_tokens
    if most is None:
        most = DEEPSEEK_MAX_TOKENS if dialect == "deepseek" else OPENAI_MAX_TOKENS
    if most == 0 and (body.n or 1) > 1:
        raise invalid(
            f"n={body.n} with max_tokens=0, expected 1: nothing is drawn", dialect, param="n"
        )
    scores = body.echo and (body.logprobs is not None or most == 0)
    params = sampling_params(
        body,
        settings,
        max_tokens=most,
        logprobs=body.logprobs,
        prompt_logprobs=(body.logprobs or 0) if scores else None,
    )
    prompts = [llm.prompts.read(_tokens(body, prompt, llm.tokenizer)) for prompt in body.prompt]
    return Prepared(prompts, params, thinking=False)


def _tokens(
    body: CompletionRequest, prompt: str | list[int], tokenizer: Tokenizer
) -> str | list[int]:
    """What the model reads: the prompt, or the frame of a middle to be filled."""
    if body.suffix is None:
        return prompt
    if not isinstance(prompt, str):
        raise RequestError("suffix needs a prompt of text, not of token ids")
    return [
        tokenizer.bos_token_id,
        tokenizer.control(FIM_BEGIN),
        *tokenizer.encode(prompt),
        tokenizer.control(FIM_HOLE),
        *tokenizer.encode(body.suffix),
        tokenizer.control(FIM_END),
    ]
