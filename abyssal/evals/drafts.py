"""How far ahead the MTP module guesses right (DeepSeek-V3, arXiv 2412.19437, section 5.4.3).

The model continues questions greedily while the module drafts DEPTH tokens. A guess counts as
accepted if it and all before it are what the model then writes.
"""

from collections.abc import Sequence

from abyssal.engine.engine import Engine
from abyssal.engine.llm import LLM
from abyssal.engine.native import NativeRunner
from abyssal.engine.options import EngineOptions
from abyssal.engine.prompts import Prompts
from abyssal.engine.request import SamplingParams
from abyssal.evals.intervals import wilson

DEPTH = 3  # positions; DeepSeek-V3 reports the first
PROMPTS, TOKENS = 32, 64  # continued, and by how much


def acceptance(llm: LLM, texts: Sequence[str]) -> list[dict[str, float]]:
    """Of each position ahead: guesses verified, those accepted, the share and its interval."""
    runner = llm.engine.runner
    model = runner.stack if isinstance(runner, NativeRunner) else runner.model
    engine = Engine(model, llm.tokenizer, EngineOptions(draft=DEPTH, deterministic=True))
    room = llm.config.max_position_embeddings - TOKENS - DEPTH
    prompts = [llm.tokenizer.encode(text, bos=True)[: max(room, 1)] for text in texts[:PROMPTS]]
    params = SamplingParams(
        max_tokens=min(TOKENS, llm.config.max_position_embeddings // 2),
        temperature=0.0,
        ignore_eos=True,
    )
    for request in Prompts(llm.config, llm.tokenizer, engine.compile).requests(prompts, params):
        engine.add(request)
    while not engine.is_idle:
        engine.step()
    stats = engine.stats()
    found = []
    for ahead, (drafted, accepted) in enumerate(zip(stats.drafted, stats.accepted, strict=True), 1):
        share, low, high = wilson(accepted, drafted)
        found.append(
            {
                "ahead": ahead,
                "drafted": drafted,
                "accepted": accepted,
                "share": share,
                "low": low,
                "high": high,
            }
        )
    return found
