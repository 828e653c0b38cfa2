"""AdaDistill (ECCV 2024, arXiv 2407.01332): a margin softmax whose centres follow the teacher.

The centres are not learned. Each is a running average of the teacher's embeddings of its class,
and how much of it stays is decided per image: alpha' = cos(student, teacher) cos(centre, teacher).
Over several ranks each holds a share of the classes; together they are one set of centres.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError
from .distributed import Ranks
from .margin_softmax import MarginSoftmax

_LEAST = 1e-6

_TINY = 1e-12

_BLOCK = 1 << 16


class AdaDistill(nn.Module):
    """The head: `forward(student, teacher, labels)` moves the centres, then gives the loss.

    `alpha`: "product" is the paper's alpha' (eq. 8), "cosine" its alpha (eq. 7), "fixed" leaves
    the centres as loaded (eq. 4). `gradient="straight"` passes s through an ArcFace margin instead
    of its true derivative. `compat="official"`: of several images of one class in a batch the last
    alone moves the centre; otherwise all do, whatever their order. In eval mode nothing moves.
    Raises UsageError for an unknown choice.
    """

    raw: Tensor
    inverse: Tensor

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
            ("margin", margin, ("arcface", "cosface")),
            ("alpha", alpha, ("product", "cosine", "fixed")),
            ("gradient", gradient, ("exact", "straight")),
            ("compat", compat, ("", "official")),
        ):
            if value not in allowed:
                raise UsageError(f"{name} is one of {', '.join(allowed)}; found {value!r}")
        self.ranks = ranks or Ranks()
        if num_classes < max(2, self.ranks.size):
            raise UsageError(
                f"{num_classes} classes; a margin softmax needs 2 or more, and one for each rank"
            )
        self.classes, self.margin, self.m, self.s = num_classes, margin, m, s
        self.alpha, self.gradient, self.compat = alpha, gradient, compat
        self.first, self.last = self.ranks.share(num_classes)
        raw = _noise(num_classes, dim, self.first, self.last)
        self.register_buffer("raw", raw)
        self.register_buffer("inverse", _inverse(raw), persistent=False)
        self.notes: dict[str, Tensor] = {}
        """Means over the last batch: alpha, lambda, cosine."""

    def centres(self) -> Tensor:
        """The raw running averages of this rank's classes, `(C, D) float32`, not of unit length."""
        return self.raw

    def load_centres(self, raw: Tensor) -> None:
        """Set the raw running averages of all classes, `(C, D) float32`.

        Raises UsageError for another shape or values that are not finite.
        """
        expected = (self.classes, self.raw.shape[1])
        if tuple(raw.shape) != expected or not bool(raw.isfinite().all()):
            raise UsageError(f"centres are finite and {expected}; found {tuple(raw.shape)}")
        self.raw.copy_(raw[self.first : self.last])
        self.renew()

    def renew(self) -> None:
        """Compute all lengths anew, after `centres()` was written to."""
        self.inverse.copy_(_inverse(self.raw))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """`student (B, D)`, `teacher (B, D)`, `labels (B,) int64` -> mean loss `()` float32.

        Embeddings need not have unit length. Rows with label -1 take no part. With several ranks
        the loss is that of all their rows. Raises UsageError for a label of no class.
        """
        dim = self.raw.shape[1]
        if student.shape != teacher.shape or student.shape[1:] != (dim,):
            raise UsageError(
                f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} embeddings"
                f" must both be (B, {dim})"
            )
        with torch.autocast(student.device.type, enabled=False):
            e = functional.normalize(student.float(), dim=1, eps=_TINY)
            with torch.no_grad():
                t = functional.normalize(teacher.float(), dim=1, eps=_TINY)
                everyone, t, labels = (self.ranks.gather(x) for x in (e.detach(), t, labels))
                if len(labels) and int(labels.max()) >= self.classes:
                    raise UsageError(
                        f"label {int(labels.max())} does not fit {self.classes} classes",
                        "num_classes must be the number of identities in the data",
                    )
                self._move(everyone, t, labels)
            loss: Tensor = MarginSoftmax.apply(  # type: ignore[no-untyped-call]
                e,
                everyone,
                labels,
                self.raw,
                self.inverse,
                self.first,
                self.ranks,
                self.margin,
                self.m,
                self.s,
                self.gradient,
            )
        return loss

    def _move(self, e: Tensor, t: Tensor, labels: Tensor) -> None:
        """Pull the batch's centres towards its teacher embeddings; all read the old centres."""
        rows = ((labels >= self.first) & (labels < self.last)).nonzero()[:, 0]
        e, t, at = e[rows], t[rows], labels[rows] - self.first
        old = self.raw[at]
        cosine = (e * t).sum(1).clamp(-1.0, 1.0)
        # Clipped on its own first: two negative factors must not make a large alpha.
        near = ((old * t).sum(1) * self.inverse[at]).clamp(_LEAST, 1.0)
        share = (cosine * near if self.alpha == "product" else cosine).clamp(_LEAST, 1.0)
        sums = [share.sum(), near.sum(), cosine.sum(), share.new_tensor(float(len(rows)))]
        means = self.ranks.sum(torch.stack(sums))
        self.notes = dict(
            zip(("alpha", "lambda", "cosine"), means / means[3].clamp_min(1), strict=False)
        )
        if not self.training or self.alpha == "fixed":
            return
        same = at[:, None] == at[None, :]
        if self.compat == "official":
            last = ~same.triu(1).any(1)
            at, moved = at[last], torch.lerp(t, old, share[:, None])[last]
        else:
            moved = _together(old, t, share, same.to(t.dtype))
        self.raw[at] = moved
        self.inverse[at] = _inverse(moved)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.renew()


def _together(old: Tensor, t: Tensor, share: Tensor, same: Tensor) -> Tensor:
    """The new centre of each row `(B, D)`; rows of one class agree on it.

    What stays is the product of the class's shares, as if they came one after the other; the
    rest is the mean of its embeddings weighted by 1 - share. `same (B, B)` is 1 for equal labels.
    """
    stays = torch.exp(same @ share.log())[:, None]
    weight = (1.0 - share)[:, None]
    mean = (same @ (weight * t)) / (same @ weight).clamp_min(_TINY)
    return stays * old + (1.0 - stays) * mean


def _noise(classes: int, dim: int, first: int, last: int) -> Tensor:
    """Rows `first..last` of small noise, the same whatever the ranks: the first teacher embedding
    of a class replaces it almost wholly."""
    out = torch.empty(last - first, dim)
    for start in range(0, classes, _BLOCK):
        block = torch.randn(min(_BLOCK, classes - start), dim).mul_(0.01)
        low, high = max(first, start), min(last, start + len(block))
        if low < high:
            out[low - first : high - first] = block[low - start : high - start]
    return out


def _inverse(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1)
    return 1.0 / lengths.clamp_min(_TINY)
