"""Whether an answer opens with thoughts: what the layout can do, and what the request says."""

from abyssal.serve.faults import Dialect, invalid
from abyssal.serve.schema import ChatRequest
from abyssal.tokenizer.template import Layout

CHAT, REASONER = "deepseek-chat", "deepseek-reasoner"  # DeepSeek's names of the two ways

# R1 always thinks and V3 never does; V3.1 is both models in one.
_ALIASES: dict[Layout, tuple[str, ...]] = {
    "v3": (CHAT,),
    "r1": (REASONER,),
    "v3.1": (CHAT, REASONER),
}


def aliases(layout: Layout) -> tuple[str, ...]:
    """The names by which DeepSeek's clients may call a model of this layout."""
    return _ALIASES[layout]


def reasoner(body: ChatRequest) -> bool:
    """Whether the model's name asks for thoughts; as at DeepSeek, not where there are tools."""
    return body.model == REASONER and not body.tools


def wants_thoughts(asked: bool | None, by_name: bool, layout: Layout, dialect: Dialect) -> bool:
    """Whether the answer shall think: as asked, else as the name says, if the layout has a choice.

    Raises:
        Fault: the request asks for what the layout cannot do.
    """
    if layout == "v3.1":
        return by_name if asked is None else asked
    always = layout == "r1"
    if asked is not None and asked != always:
        habit = "always thinks" if always else "never thinks"
        message = f"this model {habit}; leave out what the request says about thinking"
        raise invalid(message, dialect, param="thinking")
    return always
