"""Margin softmax heads with learned class centres: they train teachers, and are the baselines.

The classes are shared among the ranks, and a step may compare with a sample of them: Partial FC
(arXiv 2203.15565). No tensor of batch times classes exists; centres that a step did not compare with
keep their value, momentum and weight decay included. No step waits for a GPU.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import UsageError
from ..distributed import Ranks, to_device
from .margin_softmax import (
    START_MEAN,
    START_STD,
    adaface_margins,
    angular_logit,
    chunk_width,
    chunked_logsumexp,
)

_WEIGHT_STD = 0.01  # of the initial class centres
_BLOCK = 1 << 16  # classes drawn at once
_EPS = 1e-12  # smallest length to divide by
_BETAS = (0.9, 0.999)  # of Adam (arXiv 1412.6980), torch's defaults
_ADAM_EPS = 1e-8


class MarginHead(nn.Module):
    """A margin softmax with learned class centres.

    ArcFace (arXiv 1801.07698, eq. 3), CosFace (arXiv 1801.09414, eq. 4), ElasticFace-Arc (arXiv
    2109.09416), which draws each margin from a normal distribution around `m`, and AdaFace (arXiv
    2204.00964, eq. 9 to 11), whose margin follows the length of the embedding; the angle with its margin
    stays inside 0..pi.

    Args:
        num_classes: C, number of identities in the data.
        dim: D, embedding size.
        kind: "arcface", "cosface", "elasticface" or "adaface".
        m: Margin: radians, cosine for CosFace.
        s: Scale of the logits.
        sigma: Standard deviation of ElasticFace's margin.
        sample: Share of a rank's classes that a step compares with, but as many as the batch has
            images; the batch's own are always among them.
        adam: AdamW will train the centres (arXiv 1711.05101), not SGD.
        ranks: The processes that share the classes; by default one.

    Attributes:
        weight: This rank's class centres, `(C', D) float32`.
        momentum: Running mean of their gradients, `(C', D) float32`.
        square: The same of the squared gradients; empty unless Adam trains them.
        first: This rank's first class.
        last: One past this rank's last class.
        stats: Means over the last batch: cosine to the target.

    Raises:
        UsageError: Fewer classes than 2 or than ranks.
    """

    weight: Tensor
    momentum: Tensor
    square: Tensor
    length_mean: Tensor
    length_std: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        kind: str,
        m: float,
        s: float,
        sigma: float = 0.0,
        *,
        sample: float = 1.0,
        adam: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.ranks = ranks or Ranks()
        if num_classes < max(2, self.ranks.size):
            raise UsageError(
                f"{num_classes} classes; a margin softmax needs at least 2, and one for each rank"
            )
        self.classes, self.kind, self.m, self.s, self.sigma = num_classes, kind, m, s, sigma
        self.sample = sample
        self.first, self.last = self.ranks.shard(num_classes)
        weight = draw_rows(num_classes, dim, self.first, self.last, _WEIGHT_STD)
        self.register_buffer("weight", weight)
        self.register_buffer("momentum", torch.zeros_like(weight))
        self.register_buffer("square", torch.zeros_like(weight[: len(weight) if adam else 0]))
        self.register_buffer("length_mean", torch.tensor(START_MEAN))
        self.register_buffer("length_std", torch.tensor(START_STD))
        self.register_buffer("steps", torch.tensor(0))
        self.stats: dict[str, Tensor] = {}
        self._gradients: list[tuple[Tensor | None, Tensor]] = []

    def forward(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The mean cross-entropy.

        Args:
            student: `(B, D)`, of any length.
            teacher: Not used.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            Mean over the rows of all ranks, `() float32`.
        """
        with torch.autocast(student.device.type, enabled=False):
            student = student.float()
            e = functional.normalize(student, dim=1, eps=_EPS)
            with torch.no_grad():
                all_embeddings, labels = self.ranks.gather(e.detach()), self.ranks.gather(labels)
                lengths = self.ranks.gather(student.detach().norm(dim=1))
                margins = self._margins(lengths, labels)
                picks = self._pick_classes(labels)
            loss: Tensor = _LearnedSoftmax.apply(  # type: ignore[no-untyped-call]
                e, self, all_embeddings, labels, margins, picks
            )
        return loss

    def update(self, lr: float, momentum: float, decay: float, scale: float = 1.0) -> None:
        """Move the centres by the gradients since the last call, as torch.optim.SGD or AdamW would.

        Centres that were not compared with stay. Nothing moves where a gradient is not finite.

        Args:
            lr: Learning rate.
            momentum: Of SGD.
            decay: Weight decay.
            scale: Factor of the loss that the gradients carry.
        """
        collected, self._gradients = self._gradients, []
        if not collected:
            return
        rows, grads = _add_up(collected)
        grads.div_(scale)
        # Decided on the device, without waiting for it: nothing moves by zeros, and by factors of 1.
        finite = grads.isfinite().all()
        grads.masked_fill_(~finite, 0.0)
        moves = finite.to(grads.dtype)
        at: Any = slice(None) if rows is None else rows
        weight, first = self.weight[at], self.momentum[at]
        self.steps += finite
        if len(self.square) == 0:
            first.mul_(torch.where(finite, momentum, 1.0)).add_(grads)
            first.addcmul_(weight, moves * decay)
            weight.addcmul_(first, moves * -lr)
        else:
            second = self.square[at]
            first.lerp_(grads, moves * (1 - _BETAS[0]))
            second.lerp_(grads * grads, moves * (1 - _BETAS[1]))
            # The first step's where none has moved yet, so that nothing is divided by zero.
            count = self.steps.clamp_min(1).double()
            shares = [(1 - beta**count).to(grads.dtype) for beta in _BETAS]
            root = (second / shares[1]).sqrt_().add_(_ADAM_EPS)
            weight.mul_(1 - moves * (lr * decay)).addcmul_(first / root, moves * -lr / shares[0])
            if rows is not None:
                self.square[at] = second
        if rows is not None:  # else they are views
            self.weight[at], self.momentum[at] = weight, first

    def collect(self, picks: Tensor | None, grads: Tensor) -> None:
        """Keep a gradient of the centres until `update`.

        Args:
            picks: This rank's classes that it is of, `(K,) int64`; None for all.
            grads: `(K, D) float32`.
        """
        self._gradients.append((picks, grads))

    def _margins(self, lengths: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Angle and cosine that each row's target gets, `(size * B,) float32` each."""
        none = torch.zeros_like(lengths)
        if self.kind == "cosface":
            return none, none + self.m
        if self.kind == "elasticface":  # drawn on the CPU, alike on every rank
            drawn = torch.randn(len(lengths)).numpy()
            return self.m + self.sigma * to_device(drawn, lengths.device), none
        if self.kind != "adaface":
            return none + self.m, none
        running = self.length_mean, self.length_std
        return adaface_margins(lengths, labels >= 0, running, self.m, moves=self.training)

    def _pick_classes(self, labels: Tensor) -> Tensor | None:
        """This rank's classes that the step compares with, sorted; None for all of them."""
        count = self.last - self.first
        # How many are the batch's own is known to the device alone: there is room for every row.
        size = max(math.ceil(self.sample * count), len(labels))
        if not self.training or self.sample >= 1:
            return None
        # One draw of the shared generator on every rank, whatever the number of their classes.
        seed = int(torch.randint(0, 1 << 62, ())) + self.ranks.rank
        if size >= count:
            return None
        draw = torch.Generator(device=labels.device).manual_seed(seed)
        # One place more, for the classes of other ranks.
        order = torch.rand(count + 1, generator=draw, device=labels.device)
        is_own = (labels >= self.first) & (labels < self.last)
        order[torch.where(is_own, labels - self.first, count)] = 2.0
        return order[:count].topk(size).indices.sort().values


class _LearnedSoftmax(torch.autograd.Function):
    """Mean margin cross-entropy `()` over the rows of all ranks whose label is not -1.

    Inputs: this rank's unit embeddings `e (B, D)`; the head; `all_embeddings (size * B, D)` and
    `labels (size * B,)` of all ranks; the margins of each row; the picked classes. Its backward pass
    gives the gradient of the whole loss by this rank's rows, and hands the head that of its centres.
    """

    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        head: MarginHead,
        all_embeddings: Tensor,
        labels: Tensor,
        margins: tuple[Tensor, Tensor],
        picks: Tensor | None,
    ) -> Tensor:
        ranks, s = head.ranks, head.s
        raw = head.weight if picks is None else head.weight[picks]
        inverse = 1.0 / raw.norm(dim=1).clamp_min(_EPS)
        local = labels - head.first
        if picks is not None:
            at = torch.searchsorted(picks, local).clamp_max(len(picks) - 1)
            local = torch.where(picks[at] == local, at, -1)
        is_local = ((local >= 0) & (local < len(raw)))[:, None]
        rows = local.clamp(0, len(raw) - 1)
        local = torch.where(is_local[:, 0], local, -1)
        target_centre = torch.where(is_local, raw[rows] * inverse[rows, None], 0.0)
        cosine = ranks.sum((all_embeddings * target_centre).sum(1))
        target, slope = angular_logit(cosine, *margins, s, clips=head.kind == "adaface")
        largest, total, grad_sum = chunked_logsumexp(
            all_embeddings, raw, inverse, local, s, bool(ctx.needs_input_grad[0])
        )
        top = ranks.all_max(largest)
        rescale = (largest - top).exp()
        others = top + ranks.sum(total * rescale).log()
        logsumexp = torch.logaddexp(others, target)
        counted = (labels >= 0).to(e.dtype)
        weight = counted / counted.sum().clamp_min(1.0)
        known = cosine.detach() * counted
        head.stats = {"cosine": known.sum() / counted.sum().clamp_min(1.0)}
        if ctx.needs_input_grad[0]:
            # p_y - 1 as what the other classes have: no difference of near equals for p_y near 1.
            target_grad = -(others - logsumexp).exp() * slope * weight
            factor = rescale * (top - logsumexp).exp() * s * weight
            grads = grad_sum * factor[:, None] + target_centre * target_grad[:, None]
            start = ranks.rank * len(e)
            by_rows = ranks.sum(grads)[start : start + len(e)]
            by_centres = _centre_gradient(
                all_embeddings, raw, inverse, local, s, logsumexp, weight, target_grad
            )
            ctx.save_for_backward(by_rows, by_centres)
            ctx.head, ctx.picks = head, picks
        return (functional.softplus(others - target) * weight).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        by_rows, by_centres = ctx.saved_tensors
        # The loss comes times the number of ranks, which averages gradients; centres are not averaged.
        ctx.head.collect(ctx.picks, by_centres * (grads[0] / ctx.head.ranks.size))
        return by_rows * grads[0], *(None,) * 5


def _centre_gradient(
    e: Tensor,
    raw: Tensor,
    inverse: Tensor,
    local: Tensor,
    s: float,
    logsumexp: Tensor,
    weight: Tensor,
    target_grad: Tensor,
) -> Tensor:
    """Gradient of the loss by the raw centres, `(K, D)`, chunk by chunk of the classes.

    By the unit centre it is sum_i weight_i p_ij s e_i, and target_grad_i e_i for each row's target;
    the length of a raw centre changes nothing, so the part along it is taken out.
    """
    out = torch.empty_like(raw)
    width = chunk_width(e)
    scaled, numbers = e * s, torch.arange(len(e), device=e.device)
    for start in range(0, len(raw), width):
        centres, lengths = raw[start : start + width], inverse[start : start + width]
        z = (scaled @ centres.T).mul_(lengths).sub_(logsumexp[:, None]).exp_().mul_(weight[:, None])
        inside = (local >= start) & (local < start + len(centres))
        column = torch.where(inside, local - start, 0)
        z[numbers, column] = torch.where(inside, target_grad / s, z[numbers, column])
        by_unit, unit = z.T @ scaled, centres * lengths[:, None]
        by_unit -= unit * (by_unit * unit).sum(1, keepdim=True)
        out[start : start + width] = by_unit.mul_(lengths[:, None])
    return out


def _add_up(collected: list[tuple[Tensor | None, Tensor]]) -> tuple[Tensor | None, Tensor]:
    """Gradients of the parts of a batch as one: the classes that they are of, and their sum.

    A class that several parts picked comes as often, each time with the whole sum.
    """
    if len(collected) == 1:
        return collected[0]
    if any(picks is None for picks, _ in collected):
        return None, torch.stack([grads for _, grads in collected]).sum(0)
    rows, order = torch.cat([p for p, _ in collected if p is not None]).sort()
    grads = torch.cat([grads for _, grads in collected])[order]
    is_new = functional.pad(rows[1:] != rows[:-1], (1, 0))
    place = is_new.cumsum(0)
    return rows, torch.zeros_like(grads).index_add_(0, place, grads)[place]


def draw_rows(classes: int, dim: int, first: int, last: int, std: float) -> Tensor:
    """Rows `first..last` of a normal random matrix, the same whatever the ranks.

    Args:
        classes: Rows of the whole matrix.
        dim: Its columns.
        first: First row that is wanted.
        last: One past the last.
        std: Standard deviation.

    Returns:
        `(last - first, dim) float32`.
    """
    out = torch.empty(last - first, dim)
    for start in range(0, classes, _BLOCK):
        block = torch.randn(min(_BLOCK, classes - start), dim).mul_(std)
        low, high = max(first, start), min(last, start + len(block))
        if low < high:
            out[low - first : high - first] = block[low - start : high - start]
    return out
