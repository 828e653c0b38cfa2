"""The other ways to train: feature distillation, and margin heads that learn their classes.

All heads are called `head(student, teacher, labels)`, as AdaDistill is. ArcFace, CosFace and
ElasticFace (arXiv 2109.09416) need no teacher: they train teachers, and are the baselines.
Each sees its own rank's rows alone and knows nothing of the others.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .adadistill import AdaDistill
from .distributed import Ranks
from .recipe import Recipe

_EDGE = 1.0 - 1e-6


class Features(nn.Module):
    """Distance of unit embeddings: "mse" is the mean of |a - b|^2, "cosine" that of 1 - cos."""

    def __init__(self, kind: str, weight: float) -> None:
        super().__init__()
        self.kind, self.weight = kind, weight
        self.notes: dict[str, Tensor] = {}

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """`(B, D)`, `(B, D)`, `labels (B,)` used only for -1, which takes no part -> `()`."""
        cosine = functional.cosine_similarity(student.float(), teacher.float())[labels >= 0]
        count = max(1, len(cosine))
        self.notes = {"cosine": cosine.detach().sum() / count}
        # |a - b|^2 = 2 - 2 cos of unit vectors
        scale = 2.0 if self.kind == "mse" else 1.0
        return self.weight * scale * (1.0 - cosine).sum() / count


class MarginHead(nn.Module):
    """A margin softmax with learned class weights `(C, D)`; "elasticface" draws each margin from
    a normal distribution around `m`."""

    def __init__(
        self, num_classes: int, dim: int, kind: str, m: float, s: float, sigma: float
    ) -> None:
        super().__init__()
        self.kind, self.m, self.s, self.sigma = kind, m, s, sigma
        self.weight = nn.Parameter(torch.randn(num_classes, dim).mul_(0.01))
        self.notes: dict[str, Tensor] = {}

    def forward(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """`student (B, D)`, labels `(B,)` int64, -1 takes no part -> mean loss `()`."""
        known = labels >= 0
        e, y = functional.normalize(student.float()[known]), labels[known]
        if len(y) == 0:
            return student.sum() * 0.0
        z = e @ functional.normalize(self.weight).T
        c = z.gather(1, y[:, None]).clamp(-_EDGE, _EDGE)
        self.notes = {"cosine": c.detach().mean()}
        m = torch.full_like(c, self.m)
        if self.kind == "elasticface":
            m = m + self.sigma * torch.randn_like(c)
        target = c - m if self.kind == "cosface" else c * m.cos() - (1 - c * c).sqrt() * m.sin()
        return functional.cross_entropy(self.s * z.scatter(1, y[:, None], target), y)


def build_head(recipe: Recipe, num_classes: int, dim: int, ranks: Ranks) -> nn.Module:
    """The head of a recipe's method."""
    if recipe.method == "features":
        return Features(recipe.feature_loss, recipe.weight)
    if recipe.method in ("adadistill", "centres"):
        return AdaDistill(
            num_classes,
            dim,
            recipe.margin,
            recipe.m,
            recipe.s,
            alpha=recipe.alpha if recipe.method == "adadistill" else "fixed",
            gradient=recipe.gradient,
            compat=recipe.compat,
            ranks=ranks,
        )
    return MarginHead(num_classes, dim, recipe.method, recipe.m, recipe.s, recipe.sigma)
