"""AdaDistill (ECCV 2024, arXiv 2407.01332): a margin softmax whose centres follow the teacher.

The centres are not learned. Each is a running average of the teacher's embeddings of its class; how
much of it stays is decided per image: alpha' = cos(student, teacher) cos(centre, teacher) (eq. 8). The
margin may be AdaFace's (arXiv 2204.00964), which is no part of the paper.
Over several ranks each holds a part of the classes; together they are one set of centres.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import UsageError
from ..distributed import Ranks
from .heads import draw_rows
from .margin_softmax import (
    START_MEAN,
    START_STD,
    MarginSoftmax,
    TargetLogit,
    adaface_margins,
    angular_logit,
    margin_logit,
)

_MIN_ALPHA = 1e-6
_EPS = 1e-12  # smallest length to divide by
_NOISE = 0.01  # standard deviation of the initial centres


class AdaDistill(nn.Module):
    """The head: `forward(student, teacher, labels)` moves the centres, then computes the loss.

    Of several images of one class in a batch all move its centre, whatever their order; in eval mode
    no centre moves.

    Args:
        num_classes: C, number of identities in the data.
        dim: D, embedding size.
        margin: "arcface", "cosface" or "adaface", which follows the length of the student's embedding.
        m: Margin: radians for ArcFace, cosine for CosFace, both for AdaFace.
        s: Scale of the logits.
        alpha: "product" is the paper's alpha' (eq. 8), "cosine" its alpha (eq. 7), "fixed" leaves the
            centres as they were loaded (eq. 4).
        gradient: "exact", or "straight" for s as the derivative of an ArcFace margin.
        compat: "official": of several images of one class in a batch the last alone moves the centre.
        ranks: The processes that share the classes; by default one.

    Attributes:
        raw: Running averages of this rank's classes, not normalised, `(C', D) float32`.
        inverse: Their inverse lengths, `(C',) float32`.
        first: This rank's first class.
        last: One past this rank's last class.
        length_mean: Running mean of the student's lengths, `() float32`; with AdaFace's margin alone.
        length_std: Their standard deviation, likewise.
        stats: Means over the last batch: alpha, lambda = cos(centre, teacher), cosine.

    Raises:
        UsageError: A choice is unknown, or there are fewer classes than 2 or than ranks.
    """

    raw: Tensor
    inverse: Tensor
    length_mean: Tensor
    length_std: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int = 512,
        margin: str = "arcface",
        m: float = 0.45,
        s: float = 64.0,
        *,
        alpha: str = "product",
        gradient: str = "exact",
        compat: str = "",
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("margin", margin, ("arcface", "cosface", "adaface")),
            ("alpha", alpha, ("product", "cosine", "fixed")),
            ("gradient", gradient, ("exact", "straight")),
            ("compat", compat, ("", "official")),
        ):
            if value not in allowed:
                raise UsageError(f"{name} is one of {', '.join(allowed)}; found {value!r}")
        self.ranks = ranks or Ranks()
        if num_classes < max(2, self.ranks.size):
            raise UsageError(
                f"{num_classes} classes; a margin softmax needs at least 2, and one for each rank"
            )
        self.classes, self.margin, self.m, self.s = num_classes, margin, m, s
        self.alpha, self.gradient, self.compat = alpha, gradient, compat
        self.first, self.last = self.ranks.shard(num_classes)
        # Small noise: the first teacher embedding of a class replaces it almost wholly.
        raw = draw_rows(num_classes, dim, self.first, self.last, _NOISE)
        self.register_buffer("raw", raw)
        self.register_buffer("inverse", _inverse_lengths(raw), persistent=False)
        if margin == "adaface":
            self.register_buffer("length_mean", torch.tensor(START_MEAN))
            self.register_buffer("length_std", torch.tensor(START_STD))
        self.stats: dict[str, Tensor] = {}

    def centres(self) -> Tensor:
        """The raw running averages of this rank's classes, `(C', D) float32`, not normalised."""
        return self.raw

    def load_centres(self, raw: Tensor) -> None:
        """Set the raw running averages of all classes.

        Args:
            raw: `(C, D) float32`.

        Raises:
            UsageError: Another shape, or values that are not finite.
        """
        expected = (self.classes, self.raw.shape[1])
        if tuple(raw.shape) != expected or not bool(raw.isfinite().all()):
            raise UsageError(f"centres are finite and {expected}; found {tuple(raw.shape)}")
        self.raw.copy_(raw[self.first : self.last])
        self.update_lengths()

    def update_lengths(self) -> None:
        """Compute all inverse lengths anew, after `centres()` was written to."""
        self.inverse.copy_(_inverse_lengths(self.raw))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Move the centres (in train mode) and compute the loss.

        Args:
            student: Embeddings of any length, `(B, D)`.
            teacher: Embeddings of any length, `(B, D)`.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            Mean loss over the rows of all ranks, `() float32`.

        Raises:
            UsageError: The shapes do not fit, or a label is not a class.
        """
        dim = self.raw.shape[1]
        if student.shape != teacher.shape or student.shape[1:] != (dim,):
            raise UsageError(
                f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} embeddings"
                f" must both be (B, {dim})"
            )
        with torch.autocast(student.device.type, enabled=False):
            e = functional.normalize(student.float(), dim=1, eps=_EPS)
            with torch.no_grad():
                t = functional.normalize(teacher.float(), dim=1, eps=_EPS)
                all_embeddings, t, labels = (self.ranks.gather(x) for x in (e.detach(), t, labels))
                # Elsewhere it would wait for the device; the trainer checks labels on the host.
                if labels.device.type == "cpu" and int(labels.max()) >= self.classes:
                    raise UsageError(
                        f"label {int(labels.max())} does not fit {self.classes} classes",
                        "num_classes must be the number of identities in the data",
                    )
                self._move_centres(all_embeddings, t, labels)
                target_logit = self._target_logit(student, labels)
            loss: Tensor = MarginSoftmax.apply(  # type: ignore[no-untyped-call]
                e,
                all_embeddings,
                labels,
                self.raw,
                self.inverse,
                self.first,
                self.ranks,
                target_logit,
                self.s,
            )
        return loss

    def _target_logit(self, student: Tensor, labels: Tensor) -> TargetLogit:
        """The margin for this batch."""
        if self.margin != "adaface":
            return partial(
                margin_logit, margin=self.margin, m=self.m, s=self.s, gradient=self.gradient
            )
        lengths = self.ranks.gather(student.float().norm(dim=1))
        running = self.length_mean, self.length_std
        angle, difference = adaface_margins(
            lengths, labels >= 0, running, self.m, moves=self.training
        )
        return partial(angular_logit, angle=angle, difference=difference, s=self.s, clips=True)

    def _move_centres(self, e: Tensor, t: Tensor, labels: Tensor) -> None:
        """Move the batch's centres towards its teacher embeddings; all rows read the old centres."""
        # No number of rows is asked for, which would wait for the device: rows of other ranks'
        # classes repeat the first one of this rank's, or stay where this rank has no first one.
        own = (labels >= self.first) & (labels < self.last)
        numbers = torch.arange(len(labels), device=labels.device)
        rows = torch.where(own, numbers, own.int().argmax())
        classes = (labels[rows] - self.first).clamp(0, len(self.raw) - 1)
        e, t = e[rows], t[rows]
        old = self.raw[classes]
        cosine = (e * t).sum(1).clamp(-1.0, 1.0)
        # Clipped by itself first: two negative factors must not make a large alpha.
        centre_cosine = ((old * t).sum(1) * self.inverse[classes]).clamp(_MIN_ALPHA, 1.0)
        alpha = cosine * centre_cosine if self.alpha == "product" else cosine
        alpha = alpha.clamp(_MIN_ALPHA, 1.0)
        counted = own.to(alpha.dtype)
        sums = torch.stack(
            [(x * counted).sum() for x in (alpha, centre_cosine, cosine, torch.ones_like(alpha))]
        )
        means = self.ranks.sum(sums)
        means = means / means[3].clamp_min(1)
        self.stats = dict(zip(("alpha", "lambda", "cosine"), means, strict=False))
        if not self.training or self.alpha == "fixed":
            return
        same = (classes[:, None] == classes[None, :]) & own[None, :]
        if self.compat == "official":
            last = (same * numbers).amax(1)  # of each row's class
            moved = torch.lerp(t, old, alpha[:, None])[last]
        else:
            moved = _moved_centres(old, t, alpha, same.to(t.dtype))
        moved = torch.where(own.any(), moved, old)
        self.raw[classes] = moved  # rows of one class bring the same centre
        self.inverse[classes] = _inverse_lengths(moved)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.update_lengths()


def _moved_centres(old: Tensor, t: Tensor, alpha: Tensor, same: Tensor) -> Tensor:
    """The new centre of each row `(B, D)`; rows of one class get the same one.

    The part of the old centre is the product of the class's alphas, as if its images came one after
    the other; the rest is the mean of its embeddings weighted by 1 - alpha. `same (B, B)` is 1 where
    two rows have one class.
    """
    stays = torch.exp(same @ alpha.log())[:, None]
    weight = (1.0 - alpha)[:, None]
    mean = (same @ (weight * t)) / (same @ weight).clamp_min(_EPS)
    return stays * old + (1.0 - stays) * mean


def _inverse_lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1)
    return 1.0 / lengths.clamp_min(_EPS)
