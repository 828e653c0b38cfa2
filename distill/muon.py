"""Muon: gradient descent whose steps are orthogonal matrices. For short trainings.

Layers are matrices. After momentum each matrix of gradients is replaced by the nearest matrix whose
singular values are all 1 (Jordan et al., https://kellerjordan.github.io/posts/muon/, 2024), so that a
layer moves equally far in every direction, and every layer equally far whatever the length of its
gradient. Under SGD with one clip for the whole network the depthwise layers of a MobileFaceNet have
most of the gradient, and its 1x1 layers hardly move (docs/results/small-real.md).
All other parameters take AdamW's steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: singular values come to between .7 and 1.2
_ITERATIONS = 5
_RMS = 0.2  # Moonshot (arXiv 2502.16982, eq. 4): of a step's numbers, as under AdamW
_BETAS = (0.9, 0.99)  # of AdamW
_EPS = 1e-7  # smallest length to divide by


def matrices_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon treats as matrices: linear layers and convolutions of one group.

    A depthwise filter sees one channel: its rows have nothing in common to be orthogonal to.

    Args:
        network: The network.

    Returns:
        Weights, `(out, in, ...)`, each once, in the network's order.
    """
    weights: dict[nn.Parameter, None] = {}
    for module in network.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            weights[module.weight] = None  # type: ignore[index]
    return list(weights)


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with `matrices`, which take Muon's steps.

    A matrix moves by `lr` times .2 sqrt(max(out, in)) times the orthogonal one: its numbers have the root
    mean square that AdamW's steps have, so that one learning rate and one decay, which is decoupled,
    serve all parameters (Moonshot, arXiv 2502.16982, eq. 4).

    Args:
        groups: Parameter groups; those with `"matrices": True` hold weights `(out, in, ...)`.
        lr: Learning rate, of all groups.
        weight_decay: Of groups that give none.
        momentum: Of the matrices; Nesterov's form.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        filled = [{"matrices": False, "momentum": momentum, **group} for group in groups]
        super().__init__(filled, lr=lr, betas=_BETAS, weight_decay=weight_decay)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's looks for its "step" in the state of every parameter.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move all parameters that have a gradient; a closure is evaluated before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            if group["matrices"]:
                moved = [(p, p.grad) for p in group["params"] if p.grad is not None]
                self._move_matrices(group, moved)
                held += moved
        for p, _ in held:  # AdamW passes over parameters without a gradient
            p.grad = None
        super().step()
        for p, grad in held:
            p.grad = grad
        return loss

    def _move_matrices(
        self, group: dict[str, Any], weights: Sequence[tuple[nn.Parameter, Tensor]]
    ) -> None:
        if not weights:
            return
        lr, momentum = group["lr"], group["momentum"]
        moved: list[Tensor] = [p for p, _ in weights]
        grads = [grad for _, grad in weights]
        for p in moved:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in moved]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        ahead = torch._foreach_add(grads, buffers, alpha=momentum)
        torch._foreach_mul_(moved, 1.0 - lr * group["weight_decay"])
        alike: dict[torch.Size, list[int]] = {}
        for number, p in enumerate(moved):
            alike.setdefault(p.shape, []).append(number)
        for shape, numbers in alike.items():  # one product for all of a shape
            steps = orthogonal(torch.stack([ahead[n] for n in numbers]).flatten(2))
            length = lr * _RMS * max(steps.shape[1:]) ** 0.5
            directions = steps.reshape(-1, *shape).unbind()
            torch._foreach_add_([moved[n] for n in numbers], directions, alpha=-length)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices with orthonormal rows or columns.

    The Newton-Schulz iteration of Jordan et al.: with A = X X^T, X becomes a X + (b A + c A A) X, which
    moves each singular value towards 1 and leaves the singular vectors.

    Args:
        matrices: `(N, rows, columns)`, of any length.

    Returns:
        Of the same shape, with singular values from .7 to 1.2; those of nearly 0 stay smaller.
    """
    a, b, c = _QUINTIC
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(_EPS)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)
    return x.mT if is_tall else x
