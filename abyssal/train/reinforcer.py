"""The loop of reinforcement: draw, judge, compare within groups, learn, refresh the engine.

Everything a step depends on is in the saved state, and what is drawn is a function of counters in
it, so a resumed run takes the steps that the uninterrupted one would have taken, bit for bit.
"""

import copy
import time
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from abyssal.checkpoint.state import State
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import balance, history, reinforce_rows
from abyssal.train.exercises import Draw, Exercises
from abyssal.train.guard import Verdict
from abyssal.train.journal import Journal
from abyssal.train.lessons import Learned, Learner, Lesson, lessons_of, together
from abyssal.train.machine import Machine
from abyssal.train.progress import Progress
from abyssal.train.reinforce import GRPO
from abyssal.train.rewards import Model
from abyssal.train.rollouts import Rollouts, routing_disagreement
from abyssal.train.stopping import Stopping
from abyssal.train.trainer import working_copy


class Reinforcer(Progress):
    """A policy on its way: call `steps()` and watch, or drain it."""

    what = "update"  # of which a step may have several

    def __init__(
        self,
        run: GRPO,
        model: DeepSeekV3,
        tokenizer: Tokenizer,
        machine: Machine,
        judge: Model | None = None,
    ):
        super().__init__(run, working_copy(model, machine), machine)
        self.run, self.tokenizer = run, tokenizer
        self.reference = self._frozen() if run.objective.kl else None
        self.learner = Learner(run, self.model, self.reference, machine)
        self.rollouts = Rollouts(self.model, tokenizer, running=run.running, draft=run.draft)
        self.exercises = Exercises(run, self.rollouts, judge)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken, or the time is up."""
        minutes = self.run.minutes
        return self.step >= self.run.steps or (
            minutes is not None and self.elapsed_s >= 60 * minutes
        )

    def steps(self, journal: Journal) -> Iterator[history.Reinforce]:
        """Take step after step to the end of the run, or to the next SIGTERM or Ctrl-C."""
        with Stopping() as stopping:
            clock = time.monotonic() - self.elapsed_s
            while not self.is_finished and stopping.signal is None:
                report = self._step(journal, clock)
                if self.step % self.run.eval_every == 0 or self.is_finished:
                    self.examine(journal)
                if self.step % self.run.save_every == 0 and not self.is_finished:
                    self.save()
                yield report
            self.stopped_by = None if self.is_finished else stopping.signal
            self.save()

    # One step

    def _step(self, journal: Journal, clock: float) -> history.Reinforce:
        began = time.monotonic()
        draw = self.exercises.draw()
        routing = self._routing(draw)
        drawn = time.monotonic()
        learned = self._learn(draw, journal)
        if learned.updates:
            self.rollouts.refresh()
        lr = self.learning_rate()
        self.step += 1
        self.tokens += learned.tokens
        now = time.monotonic()
        self.elapsed_s = now - clock
        self._write_step(journal, learned, lr, now - began)
        report = reinforce_rows.drawn(
            draw,
            learned,
            step=self.step,
            tokens=self.tokens,
            routing=routing,
            accepted=self.rollouts.accepted(),
            rollout_s=drawn - began,
            train_s=now - drawn,
        )
        journal.write(report)
        return report

    def _learn(self, draw: Draw, journal: Journal) -> Learned:
        """All optimizer steps that a draw is for."""
        run = self.run
        lessons = lessons_of(draw, run)
        is_one = run.mini_batches * run.epochs == 1  # then its own pass is the one before it
        old = [None] * len(lessons) if is_one else self.learner.before(lessons)
        found: list[Learned] = []
        rewinds = self.rewinds
        for epoch in range(run.epochs):
            lot = np.random.default_rng([run.seed, self.exercises.draws, epoch])
            order = lot.permutation(len(lessons))
            for part in np.array_split(order, min(run.mini_batches, max(len(lessons), 1))):
                if len(part) and self.rewinds == rewinds:  # else the policy is no longer who drew
                    one = self._update([lessons[i] for i in part], [old[i] for i in part], journal)
                    found += [] if one is None else [one]
        return together(found)

    def _update(
        self, lessons: list[Lesson], old: list[Tensor | None], journal: Journal
    ) -> Learned | None:
        """One optimizer step; None where it was refused."""
        run = self.run
        learned = self.learner.accumulate(lessons, old, self.optimizer)
        grad_norm = self.optimizer.clip()
        verdict = self.guard.judge(learned.loss, grad_norm)
        if verdict is not Verdict.TAKE:
            detail = f"loss {learned.loss:.4g}, gradient norm {grad_norm:.4g}"
            rate, kl = run.optim.lr, run.objective.kl
            remedy = f"lower optim.lr={rate:g} or raise objective.kl={kl:g}"
            self.refuse(verdict, detail, remedy, journal)
            return None
        self.optimizer.step(self.learning_rate())
        balance.update_biases(self.model.gates(), learned.load, run.gamma)
        if self.reference is not None and self.optimizer.steps % run.reference_every == 0:
            self.reference.load_state_dict(self.model.state_dict())
        return learned._replace(grad_norm=grad_norm)

    def _routing(self, draw: Draw) -> float | None:
        if self.step % self.run.routing_every:
            return None
        answer = draw.groups[0].answers[0]
        return routing_disagreement(self.rollouts, self.model, answer)

    # What is written down

    def learning_rate(self) -> float:
        """The rate of the step to come."""
        return self.run.optim.rate(self.step, self.step, self.run.steps)

    def _write_step(self, journal: Journal, learned: Learned, lr: float, seconds: float) -> None:
        load = learned.load
        violation = balance.max_violation(load) if len(load) else None
        journal.write(
            history.Step(
                step=self.step,
                tokens=self.tokens,
                loss=learned.loss,
                lr=lr,
                gamma=self.run.gamma,
                batch_tokens=learned.tokens,
                grad_norm=learned.grad_norm,
                max_violation=None if violation is None else violation.mean().item(),
                max_violation_worst=None if violation is None else violation.max().item(),
                tokens_per_s=learned.tokens / seconds,
                elapsed_s=self.elapsed_s,
            )
        )
        self.write_load(load, journal)

    def examine(self, journal: Journal) -> None:
        """Put the questions that are held out."""
        groups = self.exercises.examine()
        for row in reinforce_rows.examined(groups, step=self.step, tokens=self.tokens):
            journal.write(row)

    # Saving

    def finish(self, journal: Journal) -> None:
        """Publish the model folder, and write down the end."""
        self.end()
        self.model.save(self.run.out)
        self.tokenizer.save(self.run.out)
        self.write_end(journal)

    def state(self) -> State:
        """Everything the next step depends on: also the reference, and which questions come."""
        step, tensors, values = super().state()
        if self.reference is not None:
            whole = self.reference.state_dict()
            tensors |= {f"reference.{name}": tensor for name, tensor in whole.items()}
        return State(step, tensors, values | {"exercises": self.place()})

    def restore(self, saved: State) -> None:
        """Take back what `state` gave; the engine follows."""
        super().restore(saved)
        if self.reference is not None:
            stem = "reference."
            whole = {n.removeprefix(stem): t for n, t in saved.tensors.items() if stem in n}
            self.reference.load_state_dict(whole)
        exercises = saved.values["exercises"]
        assert isinstance(exercises, dict)
        self.go_to(exercises)
        self.rollouts.refresh()

    def place(self) -> dict[str, object]:
        """Which questions come."""
        return self.exercises.state()

    def go_to(self, place: Mapping[str, object]) -> None:
        """Take the exercises there."""
        self.exercises.restore(place)

    def _frozen(self) -> DeepSeekV3:
        return copy.deepcopy(self.model).requires_grad_(False)
