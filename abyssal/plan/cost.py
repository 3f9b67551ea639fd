"""What a run costs: tokens -> device hours, days, money; pre-training, extension, tuning, rewards.

    hours = tokens / (tokens a second) * devices / 3600        money = hours * price

DeepSeek-V3's own table (arXiv 2412.19437, table 1) is here to compare with: 180K H800 hours a
trillion tokens, $2 an hour.
"""

from dataclasses import dataclass

from abyssal.errors import ConfigError

STAGES = ("pretrain", "extend", "sft", "rl")

# Published, in H800 hours.
HOURS_PER_TRILLION = 180e3
PRETRAIN_TOKENS = 14.8e12
EXTENSION_HOURS = 119e3
POST_TRAINING_HOURS = 5e3
H800_DOLLARS = 2.0
DEVICES = 2048
# Tokens of the two extension phases, 1,000 steps each: 1,920 rows of 32K and 480 of 128K
# (section 4.3).
EXTENSION_TOKENS = 1000 * (1920 * 32768 + 480 * 131072)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one phase of a run; money is None where nobody stated a price."""

    tokens: float
    device_hours: float
    days: float
    dollars: float | None


def of_tokens(
    tokens: float, tokens_per_s: float, devices: int, dollars_per_hour: float | None
) -> Cost:
    """What it takes to see so many tokens at that speed of all devices together.

    Raises:
        ConfigError: a number is not positive.
    """
    if tokens <= 0 or tokens_per_s <= 0:
        raise ConfigError(f"tokens={tokens:g} at {tokens_per_s:g} a second, expected more than 0")
    return of_hours(tokens, tokens / tokens_per_s / 3600 * devices, devices, dollars_per_hour)


def of_hours(
    tokens: float, device_hours: float, devices: int, dollars_per_hour: float | None
) -> Cost:
    """The same, the hours known."""
    money = None if dollars_per_hour is None else device_hours * dollars_per_hour
    days = device_hours / devices / 24
    return Cost(tokens=tokens, device_hours=device_hours, days=days, dollars=money)


def published() -> dict[str, Cost]:
    """The report's table 1: three phases and their sum."""
    phases = {
        "pre-training": (PRETRAIN_TOKENS, PRETRAIN_TOKENS / 1e12 * HOURS_PER_TRILLION),
        "context extension": (float(EXTENSION_TOKENS), EXTENSION_HOURS),
        "post-training": (0.0, POST_TRAINING_HOURS),
    }
    phases["total"] = (
        sum(tokens for tokens, _ in phases.values()),
        sum(hours for _, hours in phases.values()),
    )
    return {
        name: of_hours(tokens, hours, DEVICES, H800_DOLLARS)
        for name, (tokens, hours) in phases.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Reinforcing:
    """Tokens and seconds of learning from rewards, for one token that is answered."""

    generated_per_s: float  # tokens all devices write in a second
    trained_per_s: float  # tokens all devices learn from in a second
    scored_passes: int = 2  # forward passes beside: the policy that answered, and the reference

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens a second through generation, scoring and learning, one after the other.

        A forward pass is a third of a step's arithmetic.
        """
        learning = (1 + self.scored_passes / 3) / self.trained_per_s
        return 1 / (1 / self.generated_per_s + learning)
