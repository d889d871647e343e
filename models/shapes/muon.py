"""Muon for the blocks' weight matrices: momentum, orthogonalised by Newton-Schulz iterations.

torch.optim.Muon iterates in bfloat16, which is seventy times slower on a CPU without bfloat16 units. Here the
type is a parameter, and all matrices of one shape share one batched product. Sources: Jordan et al., 2024;
arXiv 2502.16982 for the scale that makes the steps as large as AdamW's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalise(g: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximates the nearest semi-orthogonal matrices (singular values in 0.7..1.2): [n, a, b] -> [n, a,
    b]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = (g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    wide = g.shape[1] <= g.shape[2]
    x = x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).float()


class Muon(torch.optim.Optimizer):
    """Optimizer with Nesterov momentum and orthogonalised updates. All parameters must be matrices."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure, no loss to return
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                for p in params:
                    self.state[p].setdefault("momentum", torch.zeros_like(p))
                grads = torch.stack([p.grad for p in params if p.grad is not None])
                momenta = torch.stack([self.state[p]["momentum"] for p in params])
                momenta.lerp_(grads, 1 - group["momentum"])
                update = orthogonalise(grads.lerp(momenta, group["momentum"]), dtype=self.dtype)
                scale = 0.2 * max(shape) ** 0.5
                torch._foreach_copy_([self.state[p]["momentum"] for p in params], list(momenta))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update), alpha=-group["lr"] * scale)
