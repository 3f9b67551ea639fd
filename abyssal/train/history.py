"""What a training run writes down: the rows of ``metrics.jsonl``, one JSON object a line.

journal.py appends them as a run goes; metrics.py reads them back.
"""

from dataclasses import dataclass, field

NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The run introduces itself; a resumed run does so again."""

    stage: str
    recipe: dict[str, object] = field(default_factory=dict)
    config: dict[str, object] | None = None  # the published config.json
    params_total: int | None = None
    params_active: int | None = None  # what one token meets
    machine: str = ""
    world: int = 1  # processes
    time: str = ""  # ISO 8601


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step."""

    step: int
    tokens: int  # seen since the run began
    loss: float  # nats per token, or per pair
    mtp_loss: float | None = None  # nats per token
    balance_loss: float | None = None  # eq. 17
    lr: float
    gamma: float | None = None  # speed of the bias update
    mtp_lambda: float | None = None
    batch_tokens: int
    grad_norm: float
    max_violation: float | None = None  # largest load / even load - 1, mean over MoE layers
    max_violation_worst: float | None = None  # ... of the worst layer
    figures: dict[str, float] = field(default_factory=dict)  # the stage's own: "accuracy", ...
    tokens_per_s: float
    mfu: float | None = None  # model FLOPs utilization, in [0, 1]
    elapsed_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Where the tokens of one step went: expert shares, a row per MoE layer that sums to 1."""

    step: int
    tokens: int
    load: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Bits per UTF-8 byte on text the model is not trained on."""

    step: int
    tokens: int
    name: str
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A figure of what the model was not trained on, such as the accuracy on held-out pairs."""

    step: int
    tokens: int
    name: str
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Where a tuned model sends the tokens of some text, beside where its start sent them.

    A row of a load sums to 1; there is one for each MoE layer, and so of every other field.
    """

    step: int
    tokens: int  # routed, of the text
    name: str  # of the text
    load_before: tuple[tuple[float, ...], ...]
    load: tuple[tuple[float, ...], ...]
    max_violation_before: tuple[float, ...]  # largest load / even load - 1
    max_violation: tuple[float, ...]
    total_variation: tuple[float, ...]  # half the sum of |load - load_before|, in [0, 1]
    top_changed: tuple[float, ...]  # share of tokens whose heaviest expert is another one


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What to hold an evaluation against, such as a compressor on the same text."""

    name: str  # of the evaluation it belongs to
    bits_per_byte: float
    what: str
    source: str  # how the figure came about


@dataclass(frozen=True, kw_only=True, slots=True)
class Reinforce:
    """What was drawn for a step of reinforcement, and how it was learned from."""

    step: int
    tokens: int
    answers: int
    reward: float  # mean of the weighted sum over all answers
    accuracy: float  # ... and of its parts, each in [0, 1] but the model's
    format: float
    language: float
    model: float
    length: float  # mean tokens of an answer
    longest: int
    overlong: float  # share of answers cut off at max_tokens
    groups: int  # questions drawn
    skipped: int  # ... all of whose answers had one reward
    entropy: float  # nats a token
    kl: float | None  # to the reference, nats a token
    clipped: float  # share of tokens beyond the clip
    gap_mean: float  # |log-probability by trainer - by engine|, nats
    gap_max: float
    gap_k3: float  # estimate of KL(engine || trainer), nats a token
    routing: float | None = None  # share of (token, layer) whose experts differ between the two
    accepted: float | None = None  # share of the MTP module's guesses that were right
    rollout_s: float
    train_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """Greedy answers to questions held out."""

    step: int
    tokens: int
    name: str  # of the task
    right: int
    asked: int
    formatted: int  # answers in the form asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something out of the ordinary: a loss spike, a rewind, a resumption."""

    step: int
    what: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What the model wrote at some step; in a chat, the prompt is what the user said."""

    step: int
    prompt: str
    text: str
    chat: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The run finished."""

    step: int
    tokens: int
    elapsed_s: float
    peak_rss_bytes: int | None = None  # of the process that writes this
    # Of the process that took most while training, on the device that trains.
    peak_memory_bytes: int | None = None
    world: int = 1  # processes
