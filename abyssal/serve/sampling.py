"""What a request says about drawing tokens, as the engine takes it; for chats and texts alike."""

from typing import NamedTuple

from abyssal.engine.request import Grammar, SamplingParams
from abyssal.serve.schema import Sampling
from abyssal.serve.settings import Settings
from abyssal.tokenizer.template import Layout


class Prepared(NamedTuple):
    """A call that only the engine's requests are missing from."""

    prompts: list[list[int]]
    params: SamplingParams
    thinking: bool | None = None  # None: as the prompt's tokens say
    layout: Layout | None = None  # whose tool calls are recognized


def sampling_params(
    body: Sampling,
    settings: Settings,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
    stop_token_ids: tuple[int, ...] = (),
    forbidden: tuple[int, ...] = (),
    insight: bool = False,
) -> SamplingParams:
    """The request's values, the services' defaults where it has none; `forbidden` are never drawn.

    Raises:
        RequestError: a value is impossible.
    """
    bias = dict(body.logit_bias or {}) | dict.fromkeys(forbidden, -100.0)
    temperature = 1.0 if body.temperature is None else body.temperature
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=model_temperature(temperature) if settings.map_temperature else temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=bias,
        stop=tuple(body.stop or ()),
        stop_token_ids=(*(body.stop_token_ids or ()), *stop_token_ids),
        ignore_eos=bool(body.ignore_eos),
        seed=body.seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        n=body.n or 1,
        bad_words=tuple(body.bad_words or ()),
        grammar=grammar,
        insight=insight,
    )


def model_temperature(temperature: float) -> float:
    """DeepSeek's reading of its API's temperatures (card of V3-0324): 1.0 is 0.3 at the model."""
    return 0.3 * temperature if temperature <= 1 else temperature - 0.7
