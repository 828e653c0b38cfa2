"""Margin softmax over constant class centres in one sweep, without a B x C tensor.

With constant centres w_j the loss and its gradient by the embedding e need three running values
per row over chunks of classes: the largest logit, the sum of exponentials, and the sum of
exponentials times centres (as in online softmax, arXiv 1805.02867):

    loss = log(sum_j exp z_j) - z_y,    d loss / d e = sum_j p_j s w_j / |w_j| + (p_y - 1) z_y' w_y / |w_y|

The target y gets its margin apart, on B values. Centres stay raw: their inverse lengths scale the
logits, so no normalised copy exists either.
"""

from typing import Any

import torch
from torch import Tensor

from .margins import margin_logit

_CHUNK_BYTES = 1 << 20
"""Of one chunk of logits: it should stay in a core's cache."""


def sweep(
    e: Tensor, raw: Tensor, inverse: Tensor, labels: Tensor, s: float, want_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Running values over all classes but each row's own.

    `e (B, D)` unit length, `raw (C, D)`, `inverse (C,)` = 1/|raw|, `labels (B,)` (outside 0..C-1:
    no own class here). Returns the largest logit `(B,)`, the sum `(B,)` of exp(z - largest), and
    the sum `(B, D)` of exp(z - largest) w / |w|, which is zero unless wanted.
    """
    batch, classes = len(e), len(raw)
    step = max(64, _CHUNK_BYTES // (4 * max(1, batch)))
    scaled = e * s
    largest = torch.full((batch,), -torch.inf, dtype=e.dtype, device=e.device)
    total = torch.zeros_like(largest)
    pull = torch.zeros_like(e)
    space = torch.empty(batch * min(step, classes), dtype=e.dtype, device=e.device)
    order = labels.sort()
    # Which rows have their own class in which chunk, found once on sorted labels.
    starts = torch.arange(0, classes + step, step, device=e.device)
    cuts = torch.searchsorted(order.values.contiguous(), starts).tolist()
    for number, start in enumerate(range(0, classes, step)):
        stop = min(start + step, classes)
        centres, lengths = raw[start:stop], inverse[start:stop]
        z = space[: batch * (stop - start)].view(batch, stop - start)
        torch.mm(scaled, centres.T, out=z)
        z.mul_(lengths)
        rows = order.indices[cuts[number] : cuts[number + 1]]
        z[rows, labels[rows] - start] = -torch.inf
        high = torch.maximum(largest, z.amax(1))
        # A row that has seen nothing but its own class has no largest logit yet.
        shift = torch.where(high.isfinite(), high, torch.zeros_like(high))
        fade = (largest - shift).exp_()
        z.sub_(shift[:, None]).exp_()
        total.mul_(fade).add_(z.sum(1))
        if want_gradient:
            torch.addmm(pull.mul_(fade[:, None]), z.mul_(lengths), centres, out=pull)
        largest = high
    return largest, total, pull


class MarginSoftmax(torch.autograd.Function):
    """Mean margin cross-entropy `()` of unit embeddings `(B, D)` against raw centres `(C, D)`."""

    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        raw: Tensor,
        inverse: Tensor,
        labels: Tensor,
        margin: str,
        m: float,
        s: float,
        gradient: str,
    ) -> Tensor:
        wanted = bool(ctx.needs_input_grad[0])
        own = raw[labels] * inverse[labels, None]
        target, slope = margin_logit((e * own).sum(1), margin, m, s, gradient)
        largest, total, pull = sweep(e, raw, inverse, labels, s, wanted)
        others = largest + total.log()
        everything = torch.logaddexp(others, target)
        if wanted:
            push = ((target - everything).exp() - 1.0) * slope
            share = (largest - everything).exp()
            ctx.save_for_backward((pull * (share * s)[:, None] + own * push[:, None]) / len(e))
        return (everything - target).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None, None, None, None, None
