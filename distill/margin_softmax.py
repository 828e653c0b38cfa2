"""Margins on the target cosine, in closed form on B values.

ArcFace (arXiv 1801.07698): cos(theta + m) = c cos m - sqrt(1 - c^2) sin m, whose derivative by c is
cos m + c / sqrt(1 - c^2) sin m. CosFace (arXiv 1801.09414): c - m, derivative 1.
"""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .distributed import Ranks

_EDGE = 1.0 - 1e-7
"""Cosines are kept this far inside -1..1, where the ArcFace derivative is finite."""


def margin_logit(
    cosine: Tensor, margin: str, m: float, s: float, gradient: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The target logit `(B,)` and its derivative by the cosine `(B,)`, from cosines `(B,)`.

    `gradient="straight"` takes s as the derivative of ArcFace, as insightface's trainer does.
    """
    c = cosine.clamp(-_EDGE, _EDGE)
    if margin == "cosface":
        return s * (c - m), torch.full_like(c, s)
    sine = (1.0 - c * c).sqrt()
    logit = s * (c * math.cos(m) - sine * math.sin(m))
    if gradient == "straight":
        return logit, torch.full_like(c, s)
    return logit, s * (math.cos(m) + c / sine * math.sin(m))


# The sweep for CUDA: what lies between its two matrix products becomes one kernel.
#
# On a CPU a chunk of logits stays in the cache and is worked on in place (sweep.py). On a GPU each
# of those small operations would carry the chunk through memory once more: torch.compile makes one
# of them, and where it cannot (no Triton, say) they run one by one, with a warning.

_CHUNK_BYTES = 64 << 20

Absorb = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def absorb(
    z: Tensor, lengths: Tensor, own: Tensor, largest: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One chunk into the running values.

    `z (B, K)` products with raw centres, `lengths (K,)` their inverse lengths, `own (B,)` the
    row's own column (outside 0..K-1: not here), `largest (B,)` and `total (B,)` so far. Returns
    the new two, what scales the older sums `(B,)`, and the weights of the centres `(B, K)`.
    """
    z = z * lengths
    columns = torch.arange(z.shape[1], device=z.device)
    z = torch.where(columns == own[:, None], -torch.inf, z)
    high = torch.maximum(largest, z.amax(1))
    # A row that has seen nothing but its own class has no largest logit yet.
    shift = torch.where(high == -torch.inf, 0.0, high)
    fade = (largest - shift).exp()
    p = (z - shift[:, None]).exp()
    return high, total * fade + p.sum(1), fade, p * lengths


def fused_chunked_logsumexp(
    e: Tensor,
    raw: Tensor,
    inverse: Tensor,
    labels: Tensor,
    s: float,
    want_pull: bool,
    step: Absorb | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sweep.sweep`; `step` is `absorb` or a compiled form of it."""
    step = step or _compiled()
    batch, classes = len(e), len(raw)
    width = max(64, _CHUNK_BYTES // (4 * max(1, batch)))
    scaled = e * s
    largest = e.new_full((batch,), -torch.inf)
    total = torch.zeros_like(largest)
    pull = torch.zeros_like(e)
    for start in range(0, classes, width):
        centres, lengths = raw[start : start + width], inverse[start : start + width]
        z = scaled @ centres.T
        largest, total, fade, p = step(z, lengths, labels - start, largest, total)
        if want_pull:
            pull = torch.addmm(pull * fade[:, None], p, centres)
    return largest, total, pull


@lru_cache(1)
def _compiled() -> Absorb:
    """`absorb` as one kernel, or as it is from the first time that this cannot be had."""
    fused: Absorb = torch.compile(absorb, dynamic=True)
    failed = False

    def step(*given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        nonlocal failed
        if not failed:
            try:
                return fused(*given)
            except Exception as error:  # a missing compiler shows itself in many classes
                failed = True
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(
                    f"the head runs uncompiled, and slower: {reason[0]}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return absorb(*given)

    return step


# Margin softmax over constant class centres in one sweep, without a B x C tensor.
#
# With constant centres w_j the loss and its gradient by the embedding e need three running values
# per row over chunks of classes: the largest logit, the sum of exponentials, and the sum of
# exponentials times centres (the online softmax of arXiv 1805.02867):
#
#     loss = log(sum_j exp z_j) - z_y
#     d loss / d e = sum_(j != y) p_j s w_j / |w_j|  +  (p_y - 1) dz_y/dcos w_y / |w_y|
#
# The target y gets its margin apart, on B values. Centres stay raw: their inverse lengths scale the
# logits, so no normalised copy exists. Each rank sweeps its own classes for everyone's embeddings.

_CHUNK_BYTES_sweep = 1 << 20
"""Of one chunk of logits: it should stay in the cache."""


def chunked_logsumexp(
    e: Tensor, raw: Tensor, inverse: Tensor, labels: Tensor, s: float, want_pull: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Running values over all classes but each row's own.

    `e (B, D)` unit length, `raw (C, D)`, `inverse (C,)` = 1/|raw|, `labels (B,)` (outside 0..C-1:
    no own class here). Returns the largest logit `(B,)`, the sum `(B,)` of exp(z - largest), and
    the sum `(B, D)` of exp(z - largest) w / |w|, which is zero unless wanted.
    """
    if e.is_cuda:
        return fused_chunked_logsumexp(e, raw, inverse, labels, s, want_pull)
    batch, classes = len(e), len(raw)
    step = max(64, _CHUNK_BYTES_sweep // (4 * max(1, batch)))
    scaled = e * s
    largest = e.new_full((batch,), -torch.inf)
    total = torch.zeros_like(largest)
    pull = torch.zeros_like(e)
    space = e.new_empty(batch * min(step, classes))
    # Which rows have their own class in which chunk, found once on sorted labels.
    order = labels.sort()
    bounds = torch.tensor([*range(0, classes, step), classes], device=e.device)
    cuts = torch.searchsorted(order.values, bounds).tolist()
    for number, start in enumerate(range(0, classes, step)):
        stop = min(start + step, classes)
        centres, lengths = raw[start:stop], inverse[start:stop]
        z = space[: batch * (stop - start)].view(batch, stop - start)
        torch.mm(scaled, centres.T, out=z)
        z.mul_(lengths)
        if cuts[number] < cuts[number + 1]:
            rows = order.indices[cuts[number] : cuts[number + 1]]
            z[rows, labels[rows] - start] = -torch.inf
        high = torch.maximum(largest, z.amax(1))
        # A row that has seen nothing but its own class has no largest logit yet.
        shift = high.nan_to_num(neginf=0.0)
        fade = (largest - shift).exp_()
        z.sub_(shift[:, None]).exp_()
        total.mul_(fade).add_(z.sum(1))
        if want_pull:
            torch.addmm(pull.mul_(fade[:, None]), z.mul_(lengths), centres, out=pull)
        largest = high
    return largest, total, pull


class MarginSoftmax(torch.autograd.Function):
    """Mean margin cross-entropy `()` over all ranks' rows whose label is not -1.

    `e (B, D)` are this rank's unit embeddings, `everyone (size * B, D)` all ranks', with `labels`;
    `raw (C', D)` and `inverse` are this rank's classes, numbered from `first`. The gradient is that
    of the whole loss by this rank's rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        everyone: Tensor,
        labels: Tensor,
        raw: Tensor,
        inverse: Tensor,
        first: int,
        ranks: Ranks,
        margin: str,
        m: float,
        s: float,
        gradient: str,
    ) -> Tensor:
        wanted = bool(ctx.needs_input_grad[0])
        here = labels - first
        owned = ((here >= 0) & (here < len(raw)))[:, None]
        at = here.clamp(0, len(raw) - 1)
        own = torch.where(owned, raw[at] * inverse[at, None], 0.0)
        cosine = ranks.sum((everyone * own).sum(1))
        target, slope = margin_logit(cosine, margin, m, s, gradient)
        largest, total, pull = chunked_logsumexp(everyone, raw, inverse, here, s, wanted)
        top = ranks.largest(largest)
        fade = (largest - top).exp()
        others = top + ranks.sum(total * fade).log()
        everything = torch.logaddexp(others, target)
        known = (labels >= 0).to(e.dtype)
        weight = known / known.sum().clamp_min(1.0)
        if wanted:
            # p_y - 1 is what the others have: no difference of near equals once p_y is near 1.
            push = -(others - everything).exp() * slope
            share = fade * (top - everything).exp() * s
            pull = (pull * share[:, None] + own * push[:, None]) * weight[:, None]
            start = ranks.rank * len(e)
            ctx.save_for_backward(ranks.sum(pull)[start : start + len(e)])
        return (functional.softplus(others - target) * weight).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], *(None,) * 10
