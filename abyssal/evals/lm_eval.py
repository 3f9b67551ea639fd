"""A model folder for lm-eval (EleutherAI), in process: its tasks, our passes, the same scores.

    python -m abyssal.evals.lm_eval run --model abyssal --model_args model=FOLDER --tasks blimp

The entry point `lm_eval.models` tells versions of lm-eval that look for it; 0.4.13 and before do
not, and are started through this module. Splitting, cutting and scoring are those of
`abyssal eval`, so that the same question has the same number to the bit.
"""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry

from abyssal.engine.likelihood import Continuation, Scorer
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.request import SamplingParams
from abyssal.evals.endings import fitted
from abyssal.evals.harness import windows

NAME = "abyssal"
_ANSWER_TOKENS = 256  # where a task does not say how long an answer may be


class AbyssalLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """A model folder, as lm-eval asks models."""

    def __init__(self, model: str | LLM, **options: Any):
        """`model` is a folder or an LLM; batch sizes and the like are for the engine to choose."""
        super().__init__()
        if not isinstance(model, LLM):
            model = LLM(model, options=EngineOptions(deterministic=True))
        self.llm = model
        self._scorer = Scorer(model.engine)

    @property
    def eot_token_id(self) -> int:
        """What ends a document."""
        return self.llm.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        return self.llm.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        """What requests in lm-eval's cache are told apart by."""
        return self.llm.tokenizer.sha256

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text, without BOS: that is set when it is scored."""
        return self.llm.tokenizer.encode(string)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts, in windows where they are longer than the context."""
        found = []
        for request in requests:
            tokens = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            stretches = windows(tokens, self.llm.config.max_position_embeddings)
            scored = self._scorer.score([[Continuation(*window)] for window in stretches])
            found.append(sum(one.logprob for (one,) in scored))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes, up to one of the texts that end an answer."""
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(i)
        texts = [""] * len(requests)
        for places in alike.values():
            params = _params(requests[places[0]].args[1])
            prompts = [self._prompt(requests[i].args[0], params) for i in places]
            for i, done in zip(places, self.llm.generate(prompts, params), strict=True):
                texts[i] = done.text
        return texts

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of endings behind contexts, and whether each is what would be written."""
        bos, context = self.prefix_token_id, self.llm.config.max_position_embeddings
        groups: list[list[Continuation]] = []
        last: list[int] | None = None
        for _, before, ending in requests:
            # An empty context comes as BOS alone.
            rest = before[1:] if before[:1] == [bos] else before
            one = fitted([bos], rest, ending, context)
            if before == last and len(before) > 1:
                groups[-1].append(one)  # endings of one question share its pass
            else:
                groups.append([one])
            last = before
        scored = self._scorer.score(groups)
        return [(one.logprob, one.greedy) for group in scored for one in group]

    def _prompt(self, text: str, params: SamplingParams) -> list[int]:
        """BOS and as much of the end of a prompt as leaves room for the answer."""
        context = self.llm.config.max_position_embeddings
        room = max(context - 1 - params.max_tokens, context // 2)
        return [self.prefix_token_id, *self.tok_encode(text)[-(room - 1) :]]


def _params(wanted: dict[str, Any]) -> SamplingParams:
    """lm-eval's words for how to write an answer."""
    until = wanted.get("until") or ()
    sampled = wanted.get("do_sample", wanted.get("temperature", 0.0) > 0.0)
    return SamplingParams(
        max_tokens=int(wanted.get("max_gen_toks", _ANSWER_TOKENS)),
        temperature=float(wanted.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(wanted.get("top_p", 1.0)),
        stop=(until,) if isinstance(until, str) else tuple(text for text in until if text),
        seed=wanted.get("seed"),
    )


def register() -> None:
    """Make `--model abyssal` known to this process, beside lm-eval's own models."""
    import lm_eval.models  # noqa: F401  # lm-eval registers its own only where there are none yet

    if NAME not in model_registry:
        model_registry.register(NAME, target=AbyssalLM)


def main() -> None:
    """lm-eval's own command line, with this model known."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
