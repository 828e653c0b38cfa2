"""Margin softmax over constant class centres, chunk by chunk, without a B x C tensor.

With constant centres w_j the loss and its gradient by the embedding e need three running values per
row over chunks of classes: the largest logit, the sum of exponentials, and the sum of exponentials
times centres (online softmax, arXiv 1805.02867):

    loss = log(sum_j exp z_j) - z_y
    d loss / d e = sum_(j != y) p_j s w_j / |w_j|  +  (p_y - 1) dz_y/dcos w_y / |w_y|

The target y gets its margin separately, on B values. Centres stay raw: their inverse lengths scale
the logits, so no normalised copy exists. Each rank handles its own classes for the embeddings of all.
"""

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..distributed import Ranks

logger = logging.getLogger(__name__)

_MAX_COSINE = 1.0 - 1e-7  # inside -1..1, where the derivative of ArcFace's margin is finite
# AdaFace (arXiv 2204.00964, section 3.3): concentration h, and the part of the running mean and
# standard deviation of the lengths that stays at a step.
_CONCENTRATION = 0.33
_STAYS = 0.99
START_MEAN, START_STD = 20.0, 100.0  # of the lengths, before the first step
_MIN_ANGLE = 1e-3  # radians; AdaFace's eps
_MIN_CHUNK = 64  # classes
_CPU_CHUNK_BYTES = 1 << 20  # of a chunk of logits, which should stay in the cache
_GPU_CHUNK_BYTES = 64 << 20

Running = tuple[Tensor, Tensor, Tensor, Tensor]
ChunkStep = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Running]
TargetLogit = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A target's cosine `(B,)` -> its logit with the margin, and the derivative by the cosine."""


def margin_logit(
    cosine: Tensor, margin: str, m: float, s: float, gradient: str = "exact"
) -> tuple[Tensor, Tensor]:
    """The target's logit with its margin, and the derivative by the cosine.

    ArcFace (arXiv 1801.07698, eq. 3): s cos(theta + m) = s (c cos m - sqrt(1 - c^2) sin m), with
    derivative s (cos m + c / sqrt(1 - c^2) sin m). CosFace (arXiv 1801.09414, eq. 4): s (c - m),
    derivative s.

    Args:
        cosine: Of embedding and target centre, `(B,) float32`.
        margin: "arcface" or "cosface".
        m: Margin: radians for ArcFace, cosine for CosFace.
        s: Scale of the logits.
        gradient: "exact", or "straight" for s as the derivative of ArcFace, as in insightface's
            trainer.

    Returns:
        Logit and derivative, `(B,) float32` each.
    """
    c = cosine.clamp(-_MAX_COSINE, _MAX_COSINE)
    if margin == "cosface":
        return s * (c - m), torch.full_like(c, s)
    logit, slope = angular_logit(c, torch.full_like(c, m), torch.zeros_like(c), s)
    return logit, torch.full_like(c, s) if gradient == "straight" else slope


def angular_logit(
    cosine: Tensor, angle: Tensor, difference: Tensor, s: float, *, clips: bool = False
) -> tuple[Tensor, Tensor]:
    """The target's logit s (cos(theta + angle) - difference), and its derivative by the cosine.

    The form of the margins that ArcFace (arXiv 1801.07698, eq. 4) combines.

    Args:
        cosine: Of embedding and target centre, `(B,) float32`.
        angle: Added to each row's angle, in radians, `(B,) float32`.
        difference: Taken from each row's cosine, `(B,) float32`.
        s: Scale of the logits.
        clips: Hold theta + angle between .001 and pi - .001, as AdaFace's published code does; the
            derivative is 0 at rows that are held.

    Returns:
        Logit and derivative, `(B,) float32` each.
    """
    c = cosine.clamp(-_MAX_COSINE, _MAX_COSINE)
    sine = (1.0 - c * c).sqrt()
    turned = c * angle.cos() - sine * angle.sin()
    slope = s * (angle.cos() + c / sine * angle.sin())
    if clips:  # beyond 0 the cosine falls again: it would push the embedding away from its centre
        theta = c.acos() + angle
        held = theta.clamp(_MIN_ANGLE, math.pi - _MIN_ANGLE)
        is_inside = theta == held
        turned, slope = (
            torch.where(is_inside, turned, held.cos()),
            torch.where(is_inside, slope, 0.0),
        )
    return s * (turned - difference), slope


def adaface_margins(
    lengths: Tensor, known: Tensor, running: tuple[Tensor, Tensor], m: float, *, moves: bool
) -> tuple[Tensor, Tensor]:
    """AdaFace's margin of each row, by the length of its embedding (arXiv 2204.00964, eq. 9 to 11).

    Args:
        lengths: `(B,) float32`.
        known: Rows that take part, `(B,) bool`.
        running: Mean and standard deviation of the lengths so far, `() float32` each.
        m: Margin.
        moves: Move these two towards the batch's first.

    Returns:
        Angle and difference, as `angular_logit` takes them, `(B,) float32` each.
    """
    mean, std = running
    lengths = lengths.clamp(1e-3, 100.0)
    if moves:
        counted = known.to(lengths.dtype)
        count = counted.sum()
        middle = (lengths * counted).sum() / count.clamp_min(1.0)
        spread = ((lengths - middle).square() * counted).sum() / (count - 1).clamp_min(1.0)
        share = torch.where(count > 1, 1 - _STAYS, 0.0)
        mean.lerp_(middle, share)
        std.lerp_(spread.sqrt(), share)
    quality = ((lengths - mean) / (std + 1e-3) * _CONCENTRATION).clamp(-1.0, 1.0)
    return -m * quality, m * quality + m


def chunk_width(e: Tensor) -> int:
    """Number of classes whose logits are computed at once.

    Args:
        e: Embeddings, `(B, D)`; a chunk of logits for them stays in a CPU's cache, or fills a GPU.
    """
    size = _CPU_CHUNK_BYTES if e.device.type == "cpu" else _GPU_CHUNK_BYTES
    return max(_MIN_CHUNK, size // (4 * max(1, len(e))))


def chunked_logsumexp(
    e: Tensor, raw: Tensor, inverse: Tensor, labels: Tensor, s: float, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax sums over all classes but each row's target.

    Args:
        e: Unit embeddings, `(B, D) float32`.
        raw: Centres of any length, `(C, D) float32`.
        inverse: 1 / |centre|, `(C,) float32`.
        labels: Target class, `(B,) int64`; outside 0..C-1 where it is not among these classes.
        s: Scale of the logits.
        with_grad: Whether the third result is wanted.

    Returns:
        The largest logit `(B,)`, the sum of exp(z - largest) `(B,)`, and the sum of
        exp(z - largest) w / |w| `(B, D)`, which is zero without `with_grad`.
    """
    if e.device.type != "cpu":
        return fused_logsumexp(e, raw, inverse, labels, s, with_grad)
    batch, classes = len(e), len(raw)
    width = chunk_width(e)
    scaled = e * s
    largest = e.new_full((batch,), -torch.inf)
    total = torch.zeros_like(largest)
    grad_sum = torch.zeros_like(e)
    buffer = e.new_empty(batch * min(width, classes))
    # Which rows have their target in which chunk, by sorted labels.
    order = labels.sort()
    bounds = torch.tensor([*range(0, classes, width), classes], device=e.device)
    cuts = torch.searchsorted(order.values, bounds).tolist()
    for number, start in enumerate(range(0, classes, width)):
        stop = min(start + width, classes)
        centres, lengths = raw[start:stop], inverse[start:stop]
        z = buffer[: batch * (stop - start)].view(batch, stop - start)
        torch.mm(scaled, centres.T, out=z)
        z.mul_(lengths)
        if cuts[number] < cuts[number + 1]:
            rows = order.indices[cuts[number] : cuts[number + 1]]
            z[rows, labels[rows] - start] = -torch.inf
        new_largest = torch.maximum(largest, z.amax(1))
        # A row whose only class so far is its target has no largest logit yet.
        shift = new_largest.nan_to_num(neginf=0.0)
        rescale = (largest - shift).exp_()
        z.sub_(shift[:, None]).exp_()
        total.mul_(rescale).add_(z.sum(1))
        if with_grad:
            torch.addmm(grad_sum.mul_(rescale[:, None]), z.mul_(lengths), centres, out=grad_sum)
        largest = new_largest
    return largest, total, grad_sum


def fused_logsumexp(
    e: Tensor,
    raw: Tensor,
    inverse: Tensor,
    labels: Tensor,
    s: float,
    with_grad: bool,
    step: ChunkStep | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`chunked_logsumexp` for CUDA: what lies between its two matrix products is one kernel.

    On a CPU a chunk of logits stays in the cache and is changed in place. On a GPU each of those
    small operations would carry the chunk through memory once more.

    Args:
        e: As for `chunked_logsumexp`.
        raw: The same.
        inverse: The same.
        labels: The same.
        s: The same.
        with_grad: The same.
        step: A form of `online_softmax_step`; by default compiled, or as it is with a warning where
            it cannot be compiled (without Triton, for example).

    Returns:
        As `chunked_logsumexp`.
    """
    step = step or _compiled_step()
    batch, classes = len(e), len(raw)
    width = max(_MIN_CHUNK, _GPU_CHUNK_BYTES // (4 * max(1, batch)))
    scaled = e * s
    largest = e.new_full((batch,), -torch.inf)
    total = torch.zeros_like(largest)
    grad_sum = torch.zeros_like(e)
    for start in range(0, classes, width):
        centres, lengths = raw[start : start + width], inverse[start : start + width]
        z = scaled @ centres.T
        largest, total, rescale, p = step(z, lengths, labels - start, largest, total)
        if with_grad:
            grad_sum = torch.addmm(grad_sum * rescale[:, None], p, centres)
    return largest, total, grad_sum


def online_softmax_step(
    z: Tensor, lengths: Tensor, columns: Tensor, largest: Tensor, total: Tensor
) -> Running:
    """Add one chunk of classes to the running values.

    Args:
        z: Scaled embeddings times raw centres, `(B, K)`.
        lengths: Inverse lengths of the centres, `(K,)`.
        columns: Column of each row's target, `(B,)`; outside 0..K-1 where it is not in this chunk.
        largest: Largest logit so far, `(B,)`.
        total: Sum of exponentials so far, `(B,)`.

    Returns:
        The new two, the factor of earlier sums `(B,)`, and the weights of the raw centres `(B, K)`.
    """
    z = z * lengths
    numbers = torch.arange(z.shape[1], device=z.device)
    z = torch.where(numbers == columns[:, None], -torch.inf, z)
    new_largest = torch.maximum(largest, z.amax(1))
    # A row whose only class so far is its target has no largest logit yet.
    shift = torch.where(new_largest == -torch.inf, 0.0, new_largest)
    rescale = (largest - shift).exp()
    p = (z - shift[:, None]).exp()
    return new_largest, total * rescale + p.sum(1), rescale, p * lengths


@lru_cache(1)
def _compiled_step() -> ChunkStep:
    """`online_softmax_step` as one kernel; as it is once compiling has failed."""
    compiled: ChunkStep = torch.compile(online_softmax_step, dynamic=True)
    failed = False

    def step(*args: Tensor) -> Running:
        nonlocal failed
        if not failed:
            try:
                return compiled(*args)
            except Exception as error:  # a missing compiler raises many classes
                failed = True
                reason = str(error).strip().splitlines() or [type(error).__name__]
                logger.warning("the head runs uncompiled and slower: %s", reason[0])
        return online_softmax_step(*args)

    return step


class MarginSoftmax(torch.autograd.Function):
    """Mean margin cross-entropy `()` over the rows of all ranks whose label is not -1.

    Inputs: this rank's unit embeddings `e (B, D)`; `all_embeddings (size * B, D)` and `labels
    (size * B,)` of all ranks; this rank's centres `raw (C', D)` with `inverse (C',)`, whose classes
    are numbered from `first`; the ranks; the target's logit; s. The gradient is that of the whole loss
    by this rank's rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        all_embeddings: Tensor,
        labels: Tensor,
        raw: Tensor,
        inverse: Tensor,
        first: int,
        ranks: Ranks,
        target_logit: TargetLogit,
        s: float,
    ) -> Tensor:
        with_grad = bool(ctx.needs_input_grad[0])
        local = labels - first
        is_local = ((local >= 0) & (local < len(raw)))[:, None]
        rows = local.clamp(0, len(raw) - 1)
        target_centre = torch.where(is_local, raw[rows] * inverse[rows, None], 0.0)
        cosine = ranks.sum((all_embeddings * target_centre).sum(1))
        target, slope = target_logit(cosine)
        largest, total, grad_sum = chunked_logsumexp(
            all_embeddings, raw, inverse, local, s, with_grad
        )
        top = ranks.all_max(largest)
        rescale = (largest - top).exp()
        others = top + ranks.sum(total * rescale).log()
        logsumexp = torch.logaddexp(others, target)
        counted = (labels >= 0).to(e.dtype)
        weight = counted / counted.sum().clamp_min(1.0)
        if with_grad:
            # p_y - 1 as what the other classes have: no difference of near equals for p_y near 1.
            target_grad = -(others - logsumexp).exp() * slope
            factor = rescale * (top - logsumexp).exp() * s
            grads = grad_sum * factor[:, None] + target_centre * target_grad[:, None]
            start = ranks.rank * len(e)
            ctx.save_for_backward(ranks.sum(grads * weight[:, None])[start : start + len(e)])
        return (functional.softplus(others - target) * weight).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], *(None,) * 8
