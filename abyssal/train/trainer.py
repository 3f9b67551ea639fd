"""The one loop: draw, pass, collect, clip, judge, step, balance, write down, save, resume.

Pre-training, long-context extension and fine-tuning are this loop over other data. Everything that
changes over a run is a function of tokens seen, and everything a step depends on is in the saved
state, so a resumed run takes the steps that the uninterrupted one would have taken, bit for bit.

    L MoE blocks    E experts
"""

import logging
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.checkpoint import state
from abyssal.data.packing import Packer
from abyssal.errors import ConfigError
from abyssal.evals.harness import bits_per_byte
from abyssal.model.transformer import DeepSeekV3
from abyssal.plan.count import count
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import balance, history
from abyssal.train.guard import Guard, Verdict
from abyssal.train.journal import Journal
from abyssal.train.loss import Losses, losses
from abyssal.train.machine import Machine, keep_memory
from abyssal.train.optim import Optimizer
from abyssal.train.run import Run
from abyssal.train.schedule import value_at
from abyssal.train.stopping import Stopping

logger = logging.getLogger(__name__)

LOAD_EVERY = 20  # steps between two rows of expert load
REPLAN_EVERY = 10  # steps between two looks at the clock, where `minutes` is a ceiling
WARM = 20  # steps before the speed is looked at
REWINDS = 3  # to one saved state, before the run gives up


class Trainer:
    """A model on its way: call `steps()` and watch, or drain it."""

    def __init__(
        self,
        run: Run,
        model: DeepSeekV3,
        packer: Packer,
        tokenizer: Tokenizer,
        held_out: Mapping[str, list[str]],
        machine: Machine,
    ):
        self.run, self.packer, self.tokenizer, self.machine = run, packer, tokenizer, machine
        self.held_out = held_out
        self.model = working_copy(model, machine)
        self.optimizer = Optimizer(self.model, run.optim)
        self.guard = Guard(run.guard)
        self.step, self.tokens, self.elapsed_s = 0, 0, 0.0
        self.rewinds = 0  # since the last saved state
        self.warm: tuple[int, float] | None = (
            None  # tokens and seconds when the first steps were done
        )
        self.planned_tokens = run.tokens  # what schedules are keyed to; `minutes` may lower it
        self.stopped_by: int | None = None  # the signal that ended `steps()` early
        self.flops_per_token = count(model.config).flops_per_token_training(
            run.batch.seq_len, mtp=bool(model.mtp)
        )

    @property
    def root(self) -> Path:
        """Where states are saved while the run lasts."""
        return self.run.out / "trainer"

    @property
    def is_finished(self) -> bool:
        """Whether all planned tokens are seen."""
        return self.tokens >= self.planned_tokens

    def steps(self, journal: Journal) -> Iterator[history.Step]:
        """Take step after step to the end of the run, or to the next SIGTERM or Ctrl-C."""
        with Stopping() as stopping:
            clock = time.monotonic() - self.elapsed_s
            while not self.is_finished and stopping.signal is None:
                report, load = self._step(journal, clock)
                if report is None:
                    continue
                journal.write(report)
                if self.step % LOAD_EVERY == 0 and len(load):
                    shares = (load / load.sum(-1, keepdim=True)).tolist()
                    rows = tuple(tuple(round(x, 5) for x in row) for row in shares)
                    journal.write(history.Load(step=self.step, tokens=self.tokens, load=rows))
                if self.step % self.run.eval_every == 0 or self.is_finished:
                    self.evaluate(journal)
                if self.step % self.run.save_every == 0 and not self.is_finished:
                    self.save()
                yield report
            self.stopped_by = None if self.is_finished else stopping.signal
            self.save()

    # One step

    def _step(self, journal: Journal, clock: float) -> tuple[history.Step | None, Tensor]:
        """Draw and judge one global batch; None where the step was not taken."""
        began = time.monotonic()
        batches = self._draw()
        sums, load = self._accumulate(batches)
        grad_norm = self.optimizer.clip()
        verdict = self.guard.judge(sums.main.item(), grad_norm)
        if verdict is not Verdict.TAKE:
            self._refuse(verdict, sums.main.item(), grad_norm, journal)
            return None, load
        lr, gamma = self.learning_rate(), self._at("gamma")
        self.optimizer.step(lr)
        balance.update_biases(self.model.gates(), load, gamma)
        tokens = sum(len(batch.tokens) for batch in batches)
        mtp_lambda = self._at("mtp_lambda")
        self.step += 1
        self.tokens += tokens
        seconds, self.elapsed_s = time.monotonic() - began, time.monotonic() - clock
        self._replan()
        violation = balance.max_violation(load) if len(load) else None
        return history.Step(
            step=self.step,
            tokens=self.tokens,
            loss=sums.main.item(),
            mtp_loss=sums.mtp.item() if self.model.mtp else None,
            balance_loss=sums.balance.item(),
            lr=lr,
            gamma=gamma,
            mtp_lambda=mtp_lambda if self.model.mtp else None,
            batch_tokens=tokens,
            grad_norm=grad_norm,
            max_violation=None if violation is None else violation.mean().item(),
            max_violation_worst=None if violation is None else violation.max().item(),
            tokens_per_s=tokens / seconds,
            mfu=tokens / seconds * self.flops_per_token / self.machine.peak_flops,
            elapsed_s=self.elapsed_s,
        ), load

    def _draw(self) -> list[Batch]:
        """The micro-batches of one step."""
        run = self.run
        sequences = value_at(run.batch.sequences, self.tokens, self.planned_tokens)
        passes = max(1, round(sequences / run.batch.micro_sequences))
        return [self.packer.next_batch() for _ in range(passes)]

    def _accumulate(self, batches: list[Batch]) -> tuple[Losses, Tensor]:
        """Run and differentiate every micro-batch -> mean losses, and the step's load (L, E)."""
        run, model, top_k = self.run, self.model, self.model.config.num_experts_per_tok
        scored = max(
            1, sum(int((b.labels != IGNORE).sum()) for b in batches if b.labels is not None)
        )
        mtp_lambda, alpha = self._at("mtp_lambda"), run.balance.alpha
        total = torch.zeros(3, dtype=torch.float64)
        load = torch.zeros(0, 0, dtype=torch.int64)
        for batch in batches:
            batch = batch.to(self.machine.device)
            output = model(batch, mtp=bool(model.mtp), recompute=run.recompute)
            parts = losses(output, model.lm_head.weight, batch, top_k=top_k, balance=alpha > 0)
            main, ahead = parts.main / scored, parts.mtp / scored
            term = parts.balance / len(batches)
            loss = main + mtp_lambda * ahead + alpha * term
            loss.backward()
            self.optimizer.collect()
            total += torch.stack([main, ahead, term]).detach().double().cpu()
            if output.routings:
                counts = balance.expert_load(output.routings)
                load = counts if not len(load) else load + counts
        return Losses(*total), load

    def _refuse(self, verdict: Verdict, loss: float, grad_norm: float, journal: Journal) -> None:
        """Drop a bad step; after too many, go back to the last state but on with fresh data."""
        self.optimizer.clear()
        detail = (
            f"loss {loss:.4g} (ceiling {self.guard.ceiling():.4g}), gradient norm {grad_norm:.4g}"
        )
        logger.warning("step %d skipped: %s", self.step + 1, detail)
        journal.write(history.Event(step=self.step, what="step skipped", detail=detail))
        if verdict is not Verdict.REWIND:
            return
        saved = state.latest(self.root)
        self.rewinds += 1
        if saved is None or self.rewinds > REWINDS:
            raise ConfigError(
                f"training diverged at step {self.step + 1} ({detail}), "
                + ("again and again" if saved else "with no saved state to go back to")
                + f"; lower optim.lr={self.run.optim.lr:g} or raise optim.warmup_steps"
            )
        place = self.packer.state_dict()  # the data goes on: the same batches would fail again
        self._restore(saved)
        self.packer.load_state_dict(place)
        journal.write(history.Event(step=saved.step, what="rewind", detail=detail))

    # Schedules

    def learning_rate(self) -> float:
        """The rate of the step to come."""
        optim = self.run.optim
        warmup = min(1.0, (self.step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
        return optim.lr * warmup * value_at(optim.schedule, self.tokens, self.planned_tokens)

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
        """Score the held-out text."""
        self.model.eval()
        for name, texts in self.held_out.items():
            result = bits_per_byte(self.model, self.tokenizer, texts)
            journal.write(
                history.Evaluation(
                    step=self.step,
                    tokens=self.tokens,
                    name=name,
                    bits_per_byte=result.bits_per_byte,
                )
            )
        self.model.train()

    def finish(self, journal: Journal) -> None:
        """Publish the model folder, and write down the end."""
        self.model.save(self.run.out)
        self.tokenizer.save(self.run.out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        journal.write(
            history.End(
                step=self.step, tokens=self.tokens, elapsed_s=self.elapsed_s, peak_rss_bytes=peak
            )
        )

    def save(self) -> None:
        """Publish everything the next step depends on."""
        tensors = self.optimizer.state()
        tensors |= {
            f"bias.{i}": g.e_score_correction_bias for i, g in enumerate(self.model.gates())
        }
        values = {
            "step": self.step,
            "optimizer_steps": self.optimizer.steps,
            "tokens": self.tokens,
            "planned_tokens": self.planned_tokens,
            "elapsed_s": self.elapsed_s,
            "warm": self.warm,
            "dtype": str(self.machine.dtype),
            "packer": self.packer.state_dict(),
            "guard": self.guard.state(),
        }
        state.save(self.root, self.step, tensors, values, self.run.keep)
        self.rewinds = 0

    def resume(self) -> bool:
        """Go on from the newest saved state, if there is one."""
        saved = state.latest(self.root)
        if saved is None:
            return False
        self._restore(saved)
        packer = saved.values["packer"]
        assert isinstance(packer, dict)
        self.packer.load_state_dict(packer)
        return True

    def _restore(self, saved: state.State) -> None:
        values = saved.values
        if values["dtype"] != str(self.machine.dtype):
            raise ConfigError(
                f"{self.root} was trained in {values['dtype']}, this machine would go on in "
                f"{self.machine.dtype}; set precision to what it was"
            )
        self.step, self.tokens = saved.step, int(str(values["tokens"]))
        self.planned_tokens = float(str(values["planned_tokens"]))
        self.elapsed_s = float(str(values["elapsed_s"]))
        warm = values["warm"]
        self.warm = (int(warm[0]), float(warm[1])) if isinstance(warm, list) else None
        self.optimizer.restore(saved.tensors, int(str(values["optimizer_steps"])))
        for i, gate in enumerate(self.model.gates()):
            gate.e_score_correction_bias.copy_(saved.tensors[f"bias.{i}"])
        guard = values["guard"]
        assert isinstance(guard, dict)
        self.guard.restore(guard)


def working_copy(model: DeepSeekV3, machine: Machine) -> DeepSeekV3:
    """The model on the machine's device, its matrices in the machine's precision.

    Routers and their biases stay in float32 (section 3.3.1).
    """
    keep_memory()
    model = model.to(machine.device).train()
    for name, parameter in model.named_parameters():
        kind = torch.float32 if name.endswith("gate.weight") else machine.dtype
        parameter.data = parameter.data.to(kind)
    for gate in model.gates():  # some folders hold them in BF16, where gamma would be lost
        gate.e_score_correction_bias = gate.e_score_correction_bias.float()
    return model
