"""Stage: what a larger model knows -> a smaller one, token by token.

    L = (1 - on_policy) E_traces[D(teacher || student)] + on_policy E_student[D(teacher || student)]

L_GKD of Agarwal et al. (arXiv 2306.13649), D one of `divergence.py`. A part of the passes reads
sequences of shards, which the teacher or anyone wrote; in the others the student answers questions
of the tasks itself, and the teacher says what it would have written at each of their tokens. No
gradient flows through the drawing. A step's loss is the mean over its scored tokens. Distillation
by traces alone, as DeepSeek-R1 (arXiv 2501.12948, section 2.4) does it, is the stage sft.

    T tokens of a batch
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.engine.request import SamplingParams
from abyssal.errors import ConfigError
from abyssal.evals.puzzles import prompt_of
from abyssal.model.transformer import DeepSeekV3, Output
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import lora, reinforce_rows
from abyssal.train.divergence import Guide, Kind, Name, divergence
from abyssal.train.exercises import Group, examine, judged
from abyssal.train.history import Evaluation, Examination, Sample
from abyssal.train.lessons import ROUND
from abyssal.train.loss import Losses, balance_term
from abyssal.train.machine import Machine
from abyssal.train.objective import Probe
from abyssal.train.questions import Questions
from abyssal.train.reinforce import Task
from abyssal.train.rewards import Rewards
from abyssal.train.rollouts import Answer, Rollouts
from abyssal.train.run import Data, Tuning
from abyssal.train.sft import start
from abyssal.train.text import TextObjective
from abyssal.train.trainer import Trainer, working_copy


@dataclass(frozen=True, kw_only=True, slots=True)
class Distill(Tuning):
    """A run that makes a student of `init`."""

    teacher: Path  # the folder of the model to learn from; its tokenizer is the student's
    on_policy: float = 0.0  # share of passes over sequences that the student draws
    divergence: Name = "forward"
    beta: float = 0.5  # of jsd: the teacher's share of the mixture
    temperature: float = 1.0  # of both distributions in the divergence
    data: Data | None = None  # sequences of the other passes; masks say which tokens are learned
    tasks: tuple[Task, ...] = ()  # whose questions the student answers, and is examined on
    questions: int = 64  # of one pass of its own
    max_tokens: int = 512  # of an answer
    sampling_temperature: float = 1.0  # its answers are drawn with
    running: int = 256  # answers under way at once
    held_out: int = 200  # questions of each task for examinations
    rewards: Rewards = field(default_factory=Rewards)  # what is said of answers, not learned from

    def __post_init__(self) -> None:
        Tuning.__post_init__(self)
        if not 0 <= self.on_policy <= 1:
            raise ConfigError(f"on_policy={self.on_policy}, expected a share from 0 to 1")
        if self.on_policy < 1 and self.data is None:
            raise ConfigError(
                f"on_policy={self.on_policy:g} leaves passes for sequences of shards, but there "
                "is no [data]; name some, or set on_policy = 1"
            )
        if self.on_policy > 0 and not self.tasks:
            raise ConfigError(
                f"on_policy={self.on_policy:g}, but there are no tasks whose questions the student "
                "could answer; name some, or set on_policy = 0"
            )
        if self.lora is not None and self.tasks:
            raise ConfigError(
                "[lora] and tasks: the engine answers with plain weights only; set tasks = [] and "
                "on_policy = 0, or leave [lora] away"
            )
        if self.divergence == "jsd" and not 0 < self.beta < 1:
            raise ConfigError(
                f"beta={self.beta}, expected a number between 0 and 1; what it becomes at the ends "
                'is divergence = "forward" and "reverse"'
            )
        for name in ("temperature", "sampling_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}, expected a number above 0")
        for name in ("questions", "max_tokens", "running", "held_out"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1")

    @property
    def kind(self) -> Kind:
        """The divergence as its functions take it."""
        return Kind(self.divergence, self.beta, self.temperature)


def begin(run: Distill, tokenizer: Tokenizer, machine: Machine) -> Trainer:
    """The loop before its first step."""
    if run.on_policy:
        machine.ranks.check_alone(f"stage distill with on_policy={run.on_policy:g}")
    student = start(run, tokenizer, machine)
    student.mtp.requires_grad_(False)  # the teacher says nothing about tokens further ahead
    teacher = DeepSeekV3.load(run.teacher)
    _check_teacher(run, teacher, student, tokenizer)
    teacher = working_copy(teacher, machine).eval().requires_grad_(False)
    return Trainer(run, DistillObjective(run, student, teacher, tokenizer), machine)


def _check_teacher(
    run: Distill, teacher: DeepSeekV3, student: DeepSeekV3, tokenizer: Tokenizer
) -> None:
    """Refuse a teacher whose words or lengths are not the student's."""
    if Tokenizer.load(run.teacher).sha256 != tokenizer.sha256:
        raise ConfigError(
            f"teacher={run.teacher} has another tokenizer than {run.tokenizer}, so their next "
            "tokens cannot be compared; take a teacher with the same one, or distill by traces "
            "(stage sft)"
        )
    sizes = [model.config.vocab_size for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"teacher={run.teacher} has vocab_size={sizes[0]} and init={run.init} {sizes[1]}, "
            "expected the same; make the student with the teacher's"
        )
    context = min(model.config.max_position_embeddings for model in (teacher, student))
    if run.batch.seq_len > context or (run.tasks and run.max_tokens >= context):
        raise ConfigError(
            f"batch.seq_len={run.batch.seq_len} and max_tokens={run.max_tokens}, but teacher and "
            f"student together reach max_position_embeddings={context}, prompts included; lower "
            "them"
        )


@dataclass(frozen=True, slots=True)
class Passage:
    """Sequences of one pass, and both models."""

    batch: Batch
    name: str  # who wrote them: "traces" or "student"
    student: DeepSeekV3
    teacher: DeepSeekV3
    kind: Kind
    figures: Mapping[str, tuple[float, float]]

    @property
    def weight(self) -> int:
        """Tokens with a label."""
        assert self.batch.labels is not None
        return int((self.batch.labels != IGNORE).sum())

    def score(self, output: Output, batch: Batch, *, balance: bool) -> Losses:
        """The divergence at all tokens with a label, summed."""
        assert batch.labels is not None
        rows = (batch.labels != IGNORE).nonzero()[:, 0]
        with torch.no_grad():
            guide = Guide(self.teacher(batch).hidden[rows], self.teacher.lm_head.weight)
        hidden, head = output.hidden[rows], self.student.lm_head.weight
        total, _ = divergence(hidden, head, guide, self.kind)
        top_k = self.student.config.num_experts_per_tok
        term = balance_term(output, batch, top_k=top_k, wanted=balance)
        figures = {f"loss/{self.name}": (float(total.detach()), float(len(rows))), **self.figures}
        return Losses(total, total.new_zeros(()), term, figures)


class DistillObjective:
    """Passes over shards and over what the student writes, in their shares."""

    mtp, tokens = False, math.inf

    def __init__(self, run: Distill, model: DeepSeekV3, teacher: DeepSeekV3, tokenizer: Tokenizer):
        self.run, self.model, self.teacher, self.tokenizer = run, model, teacher, tokenizer
        self.text = None if run.data is None else TextObjective(run, run.data, model, tokenizer)
        self.questions = Questions(run.tasks, run.seed, run.held_out)
        self._rollouts: Rollouts | None = None  # an engine is made where one is needed
        self.passes = self.draws = 0  # begun; refused steps included, so that none is drawn twice

    def draw(self, passes: int) -> Sequence[Passage]:
        """So many micro-batches, `on_policy` of all there ever were the student's own."""
        share = self.run.on_policy
        numbers = range(self.passes, self.passes + passes)
        own = [int((number + 1) * share) > int(number * share) for number in numbers]
        self.passes += passes
        answered = iter(self._answered(sum(own)))
        return [self._written(next(answered)) if mine else self._traces() for mine in own]

    def _traces(self) -> Passage:
        assert self.text is not None
        batch = self.text.packer.next_batch()
        return Passage(batch, "traces", self.model, self.teacher, self.run.kind, {})

    def _answered(self, passes: int) -> list[list[Group]]:
        """Questions of so many passes, and the answers of the student as it is."""
        if not passes:
            return []
        run = self.run
        params = SamplingParams(
            max_tokens=run.max_tokens, temperature=run.sampling_temperature, n=1
        )
        puzzles = self.questions.next(passes * run.questions, self.draws)
        prompts = [prompt_of(puzzle.question) for puzzle in puzzles]
        drawn = self._engine().draw(prompts, params, (run.seed, self.draws))
        self.draws += 1
        pairs = zip(puzzles, drawn, strict=True)
        groups = [judged(puzzle, some, run.max_tokens, run.rewards) for puzzle, some in pairs]
        return [groups[i : i + run.questions] for i in range(0, len(groups), run.questions)]

    def _written(self, groups: Sequence[Group]) -> Passage:
        answers = [group.answers[0] for group in groups]
        parts = [group.parts[0] for group in groups]
        count = float(len(groups))
        figures = {
            "student/accuracy": (sum(part.accuracy for part in parts), count),
            "student/format": (sum(part.format for part in parts), count),
            "student/length": (float(sum(len(answer.tokens) for answer in answers)), count),
        }
        kind = self.run.kind
        return Passage(lay_out(answers), "student", self.model, self.teacher, kind, figures)

    def _engine(self) -> Rollouts:
        """Over the weights as they are now, whoever moved them: a step, a rewind, a restart."""
        if self._rollouts is None:
            self._rollouts = Rollouts(self.model, self.tokenizer, running=self.run.running)
        else:
            self._rollouts.refresh()
        return self._rollouts

    def evaluate(self, step: int, tokens: int) -> Iterator[Evaluation | Examination | Sample]:
        """Bits per byte of the held-out text, and an examination on the tasks."""
        if self.text is not None:
            yield from self.text.evaluate(step, tokens)
        if self.questions.held_out:
            run, puzzles = self.run, self.questions.held_out
            groups = examine(puzzles, self._engine(), run.max_tokens, run.rewards)
            yield from reinforce_rows.examined(groups, step=step, tokens=tokens)

    def probe(self) -> Probe | None:
        """The held-out text of the first source."""
        return None if self.text is None else self.text.probe()

    def publish(self, folder: Path) -> None:
        """Write the model folder."""
        lora.save(self.model, folder)
        self.tokenizer.save(folder)

    def place(self) -> dict[str, object]:
        """Counters of what was drawn, and the packer's place."""
        return {
            "passes": self.passes,
            "draws": self.draws,
            "questions": self.questions.state(),
            "text": None if self.text is None else self.text.place(),
        }

    def go_to(self, place: Mapping[str, object]) -> None:
        """Take all of that back."""
        self.passes, self.draws = int(str(place["passes"])), int(str(place["draws"]))
        questions, text = place["questions"], place["text"]
        assert isinstance(questions, dict)
        self.questions.restore(questions)
        if self.text is not None:
            assert isinstance(text, dict)
            self.text.go_to(text)

    def tensors(self) -> dict[str, Tensor]:
        """None beside the optimizer's: the teacher is in its folder."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""


def lay_out(answers: Sequence[Answer]) -> Batch:
    """Prompts and answers end to end, the answers' tokens as labels."""
    sequences = [[*answer.prompt, *answer.tokens[:-1]] for answer in answers]
    labels = [[*[IGNORE] * (len(answer.prompt) - 1), *answer.tokens] for answer in answers]
    return Batch.from_sequences(sequences, labels, multiple=ROUND)
