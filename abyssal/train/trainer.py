"""The one loop: draw, pass, collect, clip, judge, step, balance, write down, save, resume.

Pre-training, long-context extension, fine-tuning, preferences and reward models are this loop under
other objectives. Everything that changes over a run is a function of tokens seen, and everything a
step depends on is in the saved state, so a resumed run takes the steps that the uninterrupted one
would have taken, bit for bit.

    L MoE blocks    E experts
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from abyssal.checkpoint.state import State
from abyssal.model.transformer import DeepSeekV3
from abyssal.plan.count import count
from abyssal.train import balance, history
from abyssal.train.drift import drift
from abyssal.train.guard import Verdict
from abyssal.train.journal import Journal
from abyssal.train.loss import Losses, mean_losses
from abyssal.train.machine import Machine, keep_memory
from abyssal.train.objective import Objective, Piece
from abyssal.train.progress import Progress
from abyssal.train.run import Run, Tuning
from abyssal.train.schedule import value_at
from abyssal.train.stopping import Stopping

logger = logging.getLogger(__name__)

_EXACT = ("gate.weight", "score.weight")  # of the router, of a reward model
REPLAN_EVERY = 10  # steps between two looks at the clock, where `minutes` is a ceiling
WARM = 20  # steps before the speed is looked at


class Trainer(Progress):
    """A model on its way: call `steps()` and watch, or drain it."""

    def __init__(self, run: Run, objective: Objective, machine: Machine):
        """The objective's model is the working copy (`working_copy`)."""
        super().__init__(run, objective.model, machine, zero=run.zero)
        self.run, self.objective = run, objective
        # Tokens and seconds when the first steps were done.
        self.warm: tuple[int, float] | None = None
        # What schedules are keyed to; `minutes` may lower it.
        self.planned_tokens = min(run.tokens, objective.tokens)
        self._say_who_idles()
        self.flops_per_token = count(self.model.config).flops_per_token_training(
            run.batch.seq_len, mtp=objective.mtp
        )

    @property
    def is_finished(self) -> bool:
        """Whether all planned tokens are seen."""
        return self.tokens >= self.planned_tokens

    def steps(self, journal: Journal) -> Iterator[history.Step]:
        """Take step after step to the end of the run, or to the next SIGTERM or Ctrl-C.

        Of several processes, all stop after the same step, whichever the signal came to.
        """
        with Stopping() as stopping:
            clock = time.monotonic() - self.elapsed_s
            while not self.is_finished and not self._is_told_to_stop(stopping):
                report, load = self._step(journal, clock)
                if report is None:
                    continue
                journal.write(report)
                self.write_load(load, journal)
                if self.step % self.run.eval_every == 0 or self.is_finished:
                    self.evaluate(journal)
                if self.step % self.run.save_every == 0 and not self.is_finished:
                    self.save()
                yield report
            self.save()

    def _is_told_to_stop(self, stopping: Stopping) -> bool:
        """Whether a signal came to any process."""
        self.stopped_by = max(self.ranks.everyone(stopping.signal or 0)) or None
        return self.stopped_by is not None

    # One step

    def _step(self, journal: Journal, clock: float) -> tuple[history.Step | None, Tensor]:
        """Draw and judge one global batch; None where the step was not taken."""
        began = time.monotonic()
        pieces = self._draw()
        sums, load = self._accumulate(pieces)
        self.optimizer.reduce()
        grad_norm = self.optimizer.clip()
        verdict = self.guard.judge(sums.main.item(), grad_norm)
        if verdict is not Verdict.TAKE:
            ceiling, optim = self.guard.ceiling(), self.run.optim
            detail = f"loss {sums.main:.4g} (ceiling {ceiling:.4g}), gradient norm {grad_norm:.4g}"
            remedy = f"lower optim.lr={optim.lr:g} or raise optim.warmup_steps"
            self.refuse(verdict, detail, remedy, journal)
            return None, load
        lr, gamma = self.learning_rate(), self._at("gamma")
        self.optimizer.step(lr)
        balance.update_biases(self.model.gates()[: len(load)], load, gamma)
        tokens = sum(len(piece.batch.tokens) for piece in pieces)
        mtp_lambda = self._at("mtp_lambda")
        self.step += 1
        self.tokens += tokens
        now = time.monotonic()
        seconds, self.elapsed_s = self.ranks.tell((now - began, now - clock))  # by one clock
        self._replan()
        violation = balance.max_violation(load) if len(load) else None
        return history.Step(
            step=self.step,
            tokens=self.tokens,
            loss=sums.main.item(),
            mtp_loss=sums.mtp.item() if self.objective.mtp else None,
            balance_loss=sums.balance.item(),
            lr=lr,
            gamma=gamma,
            mtp_lambda=mtp_lambda if self.objective.mtp else None,
            batch_tokens=tokens,
            grad_norm=grad_norm,
            max_violation=None if violation is None else violation.mean().item(),
            max_violation_worst=None if violation is None else violation.max().item(),
            figures={name: total / units for name, (total, units) in sums.figures.items()},
            tokens_per_s=tokens / seconds,
            mfu=tokens / seconds * self.flops_per_token / self.machine.peak_flops,
            elapsed_s=self.elapsed_s,
        ), load

    def _draw(self) -> Sequence[Piece]:
        """The micro-batches of one step."""
        run = self.run
        sequences = value_at(run.batch.sequences, self.tokens, self.planned_tokens)
        return self.objective.draw(max(1, round(sequences / run.batch.micro_sequences)))

    def _accumulate(self, pieces: Sequence[Piece]) -> tuple[Losses, Tensor]:
        """Run and differentiate this rank's micro-batches -> mean losses and load (L, E) of all."""
        run, model = self.run, self.model
        scored = max(1, sum(piece.weight for piece in pieces))
        mtp_lambda, alpha = self._at("mtp_lambda"), run.balance.alpha
        total = torch.zeros(3, dtype=torch.float64)
        load = torch.zeros(0, 0, dtype=torch.int64)
        figures = defaultdict[str, Tensor](lambda: torch.zeros(2, dtype=torch.float64))
        for piece in self.ranks.share(pieces):
            batch = piece.batch.to(self.machine.device)
            output = model(batch, mtp=self.objective.mtp, recompute=run.recompute)
            parts = piece.score(output, batch, balance=alpha > 0)
            main, ahead = parts.main / scored, parts.mtp / scored
            term = parts.balance / len(pieces)
            loss = main + mtp_lambda * ahead + alpha * term
            loss.backward()
            self.optimizer.collect()
            total += torch.stack([main, ahead, term]).detach().double().cpu()
            for name, value in parts.figures.items():
                figures[name] += torch.tensor(value, dtype=torch.float64)
            if output.routings:
                counts = balance.expert_load(output.routings)
                load = counts if not len(load) else load + counts
        return mean_losses(total, figures, self.ranks), balance.whole_load(load, self.ranks)

    def _say_who_idles(self) -> None:
        """Warn where the first steps have fewer micro-batches than there are processes."""
        batch, world = self.run.batch, self.ranks.world
        sequences = value_at(batch.sequences, 0, self.planned_tokens)
        pieces = max(1, round(sequences / batch.micro_sequences))
        if pieces < world:
            logger.warning(
                "a step has %d micro-batches (%g sequences, %d at a time) for %d processes, so %d "
                "of them compute nothing; lower batch.micro_sequences",
                pieces, sequences, batch.micro_sequences, world, world - pieces,
            )  # fmt: skip

    # Schedules

    def learning_rate(self) -> float:
        """The rate of the step to come."""
        return self.run.optim.rate(self.step, self.tokens, self.planned_tokens)

    def _at(self, name: str) -> float:
        curve = self.run.mtp_lambda if name == "mtp_lambda" else self.run.balance.gamma
        return value_at(curve, self.tokens, self.planned_tokens)

    def _replan(self) -> None:
        """Where `minutes` is a ceiling: plan the tokens that fit, at the speed so far."""
        if self.run.minutes is None or self.step % REPLAN_EVERY or self.step < WARM:
            return
        if self.warm is None:  # the first steps prepare matrix kernels and say nothing of the speed
            self.warm = (self.tokens, self.elapsed_s)
            return
        speed = (self.tokens - self.warm[0]) / (self.elapsed_s - self.warm[1])
        left_s = max(0.0, self.run.minutes * 60 - self.elapsed_s)
        self.planned_tokens = min(self.run.tokens, self.tokens + left_s * speed)

    # Looking and saving

    def evaluate(self, journal: Journal) -> None:
        """Score what is held out: rank 0 does, and the others wait in the next step."""
        if not self.ranks.is_first:
            return
        self.model.eval()
        for row in self.objective.evaluate(self.step, self.tokens):
            journal.write(row)
        self.model.train()

    def finish(self, journal: Journal) -> None:
        """Publish the model folder, and write down the end."""
        self.end()
        if not self.ranks.is_first:
            return
        self.objective.publish(self.run.out)
        probe = self.objective.probe() if isinstance(self.run, Tuning) else None
        if isinstance(self.run, Tuning) and probe:
            before = working_copy(DeepSeekV3.load(self.run.init), self.machine)
            found = drift(before, self.model, probe, self.step)
            if found is not None:
                journal.write(found)
        self.write_end(journal)

    def state(self) -> State:
        """Everything the next step depends on: also the plan, and the place in the data."""
        step, tensors, values = super().state()
        values |= {
            "planned_tokens": self.planned_tokens,
            "warm": self.warm,
            "data": self.place(),
        }
        return State(step, tensors | self.objective.tensors(), values)

    def restore(self, saved: State) -> None:
        """Take back what `state` gave."""
        super().restore(saved)
        warm, place = saved.values["warm"], saved.values["data"]
        self.planned_tokens = float(str(saved.values["planned_tokens"]))
        self.warm = (int(warm[0]), float(warm[1])) if isinstance(warm, list) else None
        self.objective.restore(saved.tensors)
        assert isinstance(place, dict)
        self.go_to(place)

    def place(self) -> dict[str, object]:
        """The objective's."""
        return self.objective.place()

    def go_to(self, place: Mapping[str, object]) -> None:
        """Take the objective there."""
        self.objective.go_to(place)


Model = TypeVar("Model", bound=DeepSeekV3)


def working_copy(model: Model, machine: Machine) -> Model:
    """The model on the machine's device, its matrices in the machine's precision.

    Routers and their biases stay in float32 (section 3.3.1), and so does the head of a reward
    model.
    """
    keep_memory()
    model = model.to(machine.device).train()
    for name, parameter in model.named_parameters():
        kind = torch.float32 if name.endswith(_EXACT) else machine.dtype
        parameter.data = parameter.data.to(kind)
    for gate in model.gates():  # some folders hold them in BF16, where gamma would be lost
        gate.e_score_correction_bias = gate.e_score_correction_bias.float()
    return model
