"""AdaDistill (ECCV 2024, arXiv 2407.01332): a margin softmax whose centres follow the teacher.

The centres are not learned. Each is a running average of the teacher's embeddings of its class,
and how much of it stays is decided per image: alpha' = cos(student, teacher) cos(centre, teacher).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError
from .sweep import MarginSoftmax

_LEAST = 1e-6
_TINY = 1e-12


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
        if num_classes < 2:
            raise UsageError(f"a margin softmax needs 2 classes or more, found {num_classes}")
        self.margin, self.m, self.s = margin, m, s
        self.alpha, self.gradient, self.compat = alpha, gradient, compat
        # Small noise: the first teacher embedding of a class replaces it almost wholly.
        raw = torch.randn(num_classes, dim).mul_(0.01)
        self.register_buffer("raw", raw)
        self.register_buffer("inverse", _inverse(raw), persistent=False)
        self.notes: dict[str, Tensor] = {}
        """Means over the last batch: alpha, lambda, cosine."""

    def centres(self) -> Tensor:
        """The raw running averages, `(C, D) float32`, not of unit length."""
        return self.raw

    def load_centres(self, raw: Tensor) -> None:
        """Set the raw running averages `(C, D) float32`; raises UsageError for another shape."""
        if raw.shape != self.raw.shape or not bool(raw.isfinite().all()):
            raise UsageError(
                f"centres are finite and {tuple(self.raw.shape)}; found {tuple(raw.shape)}"
            )
        self.raw.copy_(raw)
        self.inverse.copy_(_inverse(self.raw))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """`student (B, D)`, `teacher (B, D)`, `labels (B,) int64` -> mean loss `()` float32.

        Embeddings need not have unit length. Rows with label -1 take no part. Raises UsageError
        for a label of no class.
        """
        known = labels >= 0
        if not bool(known.all()):
            student, teacher, labels = student[known], teacher[known], labels[known]
        if len(labels) == 0:
            return student.sum() * 0.0
        if int(labels.max()) >= len(self.raw):
            raise UsageError(
                f"label {int(labels.max())} does not fit {len(self.raw)} classes",
                "num_classes must be the number of identities in the data",
            )
        with torch.autocast(student.device.type, enabled=False):
            e = functional.normalize(student.float(), dim=1, eps=_TINY)
            with torch.no_grad():
                t = functional.normalize(teacher.float(), dim=1, eps=_TINY)
                self._move(e, t, labels)
            loss: Tensor = MarginSoftmax.apply(  # type: ignore[no-untyped-call]
                e, self.raw, self.inverse, labels, self.margin, self.m, self.s, self.gradient
            )
        return loss

    def _move(self, e: Tensor, t: Tensor, labels: Tensor) -> None:
        """Pull the batch's centres towards its teacher embeddings; all read the old centres."""
        old = self.raw[labels]
        cosine = (e * t).sum(1).clamp(-1.0, 1.0)
        # Clipped on its own first: two negative factors must not make a large alpha.
        near = ((old * t).sum(1) * self.inverse[labels]).clamp(_LEAST, 1.0)
        share = cosine * near if self.alpha == "product" else cosine
        share = share.clamp(_LEAST, 1.0)
        self.notes = {"alpha": share.mean(), "lambda": near.mean(), "cosine": cosine.mean()}
        if not self.training or self.alpha == "fixed":
            return
        same = labels[:, None] == labels[None, :]
        if self.compat == "official":
            last = ~same.triu(1).any(1)
            labels, moved = labels[last], (share[:, None] * old + (1 - share)[:, None] * t)[last]
        else:
            moved = _together(old, t, share, same.to(t.dtype))
        self.raw[labels] = moved
        self.inverse[labels] = _inverse(moved)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self.inverse.copy_(_inverse(self.raw))


def _together(old: Tensor, t: Tensor, share: Tensor, same: Tensor) -> Tensor:
    """The new centre of each row `(B, D)`; rows of one class agree on it.

    What stays is the product of the class's shares, as if they came one after the other; the
    rest is the mean of its embeddings weighted by 1 - share. `same (B, B)` is 1 for equal labels.
    """
    stays = torch.exp(same @ share.log())[:, None]
    weight = (1.0 - share)[:, None]
    mean = (same @ (weight * t)) / (same @ weight).clamp_min(_TINY)
    return stays * old + (1.0 - stays) * mean


def _inverse(rows: Tensor) -> Tensor:
    return 1.0 / rows.norm(dim=1).clamp_min(_TINY)
