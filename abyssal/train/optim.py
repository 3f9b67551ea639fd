"""Optimizers over float32 master weights, while the model itself holds the working copy.

AdamW as in the paper (section 4.2), with moments in BF16 or FP32 (section 3.3.3), and Muon for the
matrices (Jordan et al., 2024), orthogonalizing all matrices of one shape in one batched product.

    AdamW    m = b1 m + (1-b1) g    v = b2 v + (1-b2) g^2
             w -= lr (m^ / (sqrt(v^) + eps) + decay w)
    Muon     m = mu m + g
             w -= lr (0.2 sqrt(max(rows, cols)) orth(g + mu m) + decay w)
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from abyssal.errors import ConfigError
from abyssal.kernels import adamw as kernel
from abyssal.parallel import zero
from abyssal.parallel.ranks import ALONE, Ranks
from abyssal.train.schedule import Curve, Segment, value_at

# Coefficients of five Newton-Schulz steps that push singular values towards 1 quickly (the fitted
# schedule in common use with Muon; the plain cubic needs twice as many).
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """How weights move; the defaults are the paper's."""

    matrices: Literal["adamw", "muon"] = (
        "adamw"  # vectors, embedding, head and router: always AdamW
    )
    lr: float = 2.2e-4  # at the top of `schedule`, after `warmup_steps`
    adamw_scale: float = 1.0  # rate of what AdamW moves beside Muon, relative to `lr`
    warmup_steps: int = 2000
    schedule: Curve = (
        Segment(until=10e12, to=1.0),
        Segment(until=14.3e12, to=0.1, shape="cosine"),
        Segment(until=14.633e12, to=0.1),
        Segment(until=14.8e12, to=7.3 / 220),
    )
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    momentum: float = 0.95  # of Muon
    clip_norm: float = 1.0
    moments: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("lr", "adamw_scale", "eps", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name}={getattr(self, name)}, expected a positive number")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ConfigError(
                f"optim.weight_decay={self.weight_decay} and warmup_steps={self.warmup_steps}, "
                "expected neither below 0"
            )
        if not (0 <= self.betas[0] < 1 and 0 <= self.betas[1] < 1 and 0 <= self.momentum < 1):
            raise ConfigError(
                f"optim.betas={list(self.betas)} and momentum={self.momentum}, expected each in "
                "[0, 1)"
            )

    def rate(self, step: int, seen: float, planned: float) -> float:
        """Of the step after `step`, with that much seen of what is planned."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.lr * warmup * value_at(self.schedule, seen, planned)


class Optimizer:
    """Float32 masters of every parameter, their gradients and moments, and the step that moves
    them.
    """

    def __init__(
        self, model: nn.Module, optim: Optim, ranks: Ranks = ALONE, *, is_shared: bool = False
    ):
        """Where it is shared, masters and moments of each parameter live with one rank only."""
        self.optim, self.ranks, self.is_shared = optim, ranks, is_shared and not ranks.is_alone
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        is_muon = optim.matrices == "muon"
        self.muon = {n for n in self.parameters if is_muon and _is_matrix(n, model)}
        kind = torch.bfloat16 if optim.moments == "bfloat16" else torch.float32
        self.owners = self._owners(kind.itemsize)
        # A parameter already in float32 is its own master.
        self.masters = {n: p.detach().float() for n, p in self.parameters.items() if self._has(n)}
        self.first = {n: torch.zeros_like(m, dtype=kind) for n, m in self.masters.items()}
        adamw = [n for n in self.masters if n not in self.muon]
        self.second = {n: torch.zeros_like(self.first[n]) for n in adamw}
        self.steps = 0
        # As collected: of one micro-batch the tensor that came, of several a sum in float32.
        self._collected: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # float32 room for those sums
        self._clipped = 1.0  # what collected gradients are to be multiplied by

    @property
    def grads(self) -> dict[str, Tensor]:
        """Float32 copies of all gradients as the next step will use them."""
        return {name: self._gradient(name) for name in self.masters}

    def collect(self) -> None:
        """Take the working copy's gradients away from it, adding them up in float32 (one
        micro-batch); clipping comes after the last one.
        """
        assert self._clipped == 1.0, "gradients collected after clipping would not be clipped"
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            grad, parameter.grad = parameter.grad, None
            if name in self._collected:
                if name not in self._sums:
                    self._sums[name] = torch.empty_like(parameter, dtype=torch.float32)
                grad = kernel.add(self._collected[name], grad, self._sums[name])
            self._collected[name] = grad

    def reduce(self) -> None:
        """Add up what all ranks collected, in float32; each keeps what it will step with."""
        if self.ranks.is_alone:
            return
        for owner, names in self._by_owner():
            sums = {name: self._sum(name) for name in names}
            zero.sum_all(self.ranks, list(sums.values()), owner)
            for name in names:
                if self._has(name):
                    self._collected[name] = sums[name]
                else:
                    self._collected.pop(name, None)

    def clip(self) -> float:
        """Scale the gradients to at most clip_norm; the norm before, which may be inf or nan."""
        norm = self._norm() * self._clipped
        if math.isfinite(norm) and norm > self.optim.clip_norm:
            self._clipped *= self.optim.clip_norm / norm
        return norm

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move the masters, write them into the working copy, and clear the gradients."""
        self.steps += 1
        for name in self.second:
            self._adamw(name, lr * self.optim.adamw_scale if self.muon else lr)
        self._muon(lr)
        for name in self.muon & self.masters.keys():
            self.parameters[name].copy_(self.masters[name])
        for owner, names in self._by_owner():
            if owner is not None:
                zero.copy_all(self.ranks, [self.parameters[name].data for name in names], owner)
        self.clear()

    def clear(self) -> None:
        """Forget the gradients collected so far."""
        self._collected.clear()
        self._clipped = 1.0

    def state(self) -> dict[str, Tensor]:
        """Everything that must survive a restart, by name; what another rank keeps is on `meta`."""
        kind = torch.bfloat16 if self.optim.moments == "bfloat16" else torch.float32
        found = {}
        for group, kept in self._groups().items():
            for name, parameter in self.parameters.items():
                if name in kept:
                    found[f"{group}.{name}"] = kept[name]
                elif group != "second" or name not in self.muon:
                    dtype = torch.float32 if group == "masters" else kind
                    absent = torch.empty(parameter.shape, dtype=dtype, device="meta")
                    found[f"{group}.{name}"] = absent
        return found

    def fetch(self, key: str, tensor: Tensor) -> Tensor:
        """A tensor of `state`, which rank 0 gets from its owner: all ranks ask for all in order."""
        name = key.partition(".")[2]
        if tensor.is_meta and self.ranks.is_first:
            tensor = torch.empty_like(tensor, device=self.parameters[name].device)
        self.ranks.bring(tensor, self.owners.get(name, 0))
        return tensor

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """Take back what `state` gave, of whichever ranks, and refresh the working copy."""
        self.steps = steps
        for group, kept in self._groups().items():
            for name, tensor in kept.items():
                tensor.copy_(state[f"{group}.{name}"])
        for name, parameter in self.parameters.items():
            parameter.copy_(state[f"masters.{name}"])

    def _groups(self) -> dict[str, dict[str, Tensor]]:  # by the names that states have
        return {"masters": self.masters, "first": self.first, "second": self.second}

    # Several ranks

    def _owners(self, moment_bytes: int) -> dict[str, int]:
        """Who keeps each parameter's state, where it is shared."""
        sizes = {}
        for name, parameter in self.parameters.items():
            master = 0 if parameter.dtype == torch.float32 else 4
            moments = moment_bytes * (1 if name in self.muon else 2)
            sizes[name] = parameter.numel() * (master + moments)
        return zero.owners(sizes, self.ranks.world) if self.is_shared else {}

    def _has(self, name: str) -> bool:
        """Whether this rank keeps the state of a parameter."""
        return not self.is_shared or self.owners[name] == self.ranks.rank

    def _by_owner(self) -> Iterator[tuple[int | None, list[str]]]:
        """The parameters of each owner; None owns all of them where nothing is shared."""
        if not self.is_shared:
            yield None, list(self.parameters)
            return
        for rank in range(self.ranks.world):
            yield rank, [name for name in self.parameters if self.owners[name] == rank]

    def _sum(self, name: str) -> Tensor:
        """What this rank collected of a gradient, in float32 room that may be written to."""
        grad = self._collected.get(name)
        if grad is not None and grad.dtype == torch.float32:
            return grad
        if name not in self._sums:
            self._sums[name] = torch.empty_like(self.parameters[name], dtype=torch.float32)
        room = self._sums[name]
        return room.zero_() if grad is None else room.copy_(grad)

    def _norm(self) -> float:
        """Of all gradients, as one rank says it to all: another machine may round otherwise."""
        norm = kernel.norm(list(self._collected.values()))
        if not self.is_shared:
            return self.ranks.tell(norm)
        return math.sqrt(sum(part * part for part in self.ranks.everyone(norm)))

    def _gradient(self, name: str) -> Tensor:
        """A float32 copy of a clipped gradient; zeros where none came."""
        if name not in self._collected:
            return torch.zeros_like(self.masters[name])
        return self._collected[name].float() * self._clipped

    def _adamw(self, name: str, lr: float) -> None:
        cfg, master = self.optim, self.masters[name]
        decay = cfg.weight_decay if master.ndim > 1 else 0.0  # gains and other vectors do not decay
        kernel.adamw(
            master,
            self._collected.get(name),
            self._clipped,
            self.first[name],
            self.second[name],
            self.parameters[name],
            kernel.Rates(lr, decay, cfg.betas, cfg.eps, self.steps),
        )

    def _muon(self, lr: float) -> None:
        cfg = self.optim
        same: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name in sorted(self.muon & self.masters.keys()):
            grad, first = self._gradient(name), self.first[name]
            momentum = first.float().mul_(cfg.momentum).add_(grad)
            first.copy_(momentum)
            update = grad.add_(momentum, alpha=cfg.momentum).bfloat16()  # Nesterov
            rows, cols = update.shape[-2:]
            same[rows, cols].append((update.view(-1, rows, cols), self.masters[name]))
        for (rows, cols), pairs in same.items():
            updates = orthogonalize(torch.cat([update for update, _ in pairs]))
            scale = 0.2 * math.sqrt(
                max(rows, cols)
            )  # the size of an AdamW update (arXiv 2502.16982)
            for update, (_, master) in zip(
                updates.split([len(u) for u, _ in pairs]), pairs, strict=True
            ):
                master.mul_(1 - lr * cfg.weight_decay)
                master.add_(update.view_as(master), alpha=-lr * scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Roughly the nearest (semi-)orthogonal matrix to each of matrices (N, rows, cols), in BF16."""
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x: Tensor = matrices.bfloat16() * (1 / (norm * 1.02 + 1e-10)).bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if is_tall else x
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if is_tall else x


def _is_matrix(name: str, model: nn.Module) -> bool:
    """Whether Muon moves this parameter: the matrices inside blocks, but for the router's."""
    inside = name.startswith(("layers.", "mtp."))
    return inside and model.get_parameter(name).ndim > 1 and not name.endswith("gate.weight")
