"""The other losses: feature distillation, and margin heads that learn their class centres.

All heads are called `head(student, teacher, labels)`, as AdaDistill is. ArcFace, CosFace and
ElasticFace need no teacher: they train teachers, and are the baselines. Unlike AdaDistill, each loss
is the mean over its own rank's rows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .adadistill import AdaDistill
from .distributed import Ranks
from .recipe import Recipe

_MAX_COSINE = 1.0 - 1e-6  # inside -1..1, where the square root has a derivative
_WEIGHT_STD = 0.01  # of the initial class centres


class FeatureLoss(nn.Module):
    """Distance of unit embeddings of student and teacher.

    Args:
        kind: "mse" is the mean of |a - b|^2, "cosine" that of 1 - cos.
        weight: Factor of the loss.

    Attributes:
        stats: Means over the last batch: cosine.
    """

    def __init__(self, kind: str, weight: float) -> None:
        super().__init__()
        self.kind, self.weight = kind, weight
        self.stats: dict[str, Tensor] = {}

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The mean distance.

        Args:
            student: `(B, D)`, of any length.
            teacher: `(B, D)`, of any length.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            `() float32`.
        """
        cosine = functional.cosine_similarity(student.float(), teacher.float())[labels >= 0]
        count = max(1, len(cosine))
        self.stats = {"cosine": cosine.detach().sum() / count}
        # |a - b|^2 = 2 - 2 cos for unit vectors
        factor = 2.0 if self.kind == "mse" else 1.0
        return self.weight * factor * (1.0 - cosine).sum() / count


class MarginHead(nn.Module):
    """A margin softmax with learned class centres.

    ArcFace (arXiv 1801.07698, eq. 3), CosFace (arXiv 1801.09414, eq. 4), ElasticFace-Arc (arXiv
    2109.09416), which draws each margin from a normal distribution around `m`.

    Args:
        num_classes: C, number of identities in the data.
        dim: D, embedding size.
        kind: "arcface", "cosface" or "elasticface".
        m: Margin: radians, cosine for CosFace.
        s: Scale of the logits.
        sigma: Standard deviation of ElasticFace's margin.

    Attributes:
        weight: Class centres, `(C, D) float32`.
        stats: Means over the last batch: cosine to the target.
    """

    def __init__(
        self, num_classes: int, dim: int, kind: str, m: float, s: float, sigma: float
    ) -> None:
        super().__init__()
        self.kind, self.m, self.s, self.sigma = kind, m, s, sigma
        self.weight = nn.Parameter(torch.randn(num_classes, dim).mul_(_WEIGHT_STD))
        self.stats: dict[str, Tensor] = {}

    def forward(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The mean cross-entropy.

        Args:
            student: `(B, D)`, of any length.
            teacher: Not used.
            labels: `(B,) int64`; rows with -1 take no part.

        Returns:
            `() float32`.
        """
        known = labels >= 0
        e, y = functional.normalize(student.float()[known]), labels[known]
        if len(y) == 0:
            return (student.sum() + self.weight.sum()) * 0.0
        z = e @ functional.normalize(self.weight).T
        c = z.gather(1, y[:, None]).clamp(-_MAX_COSINE, _MAX_COSINE)
        self.stats = {"cosine": c.detach().mean()}
        m = torch.full_like(c, self.m)
        if self.kind == "elasticface":
            m = m + self.sigma * torch.randn_like(c)
        target = c - m if self.kind == "cosface" else c * m.cos() - (1 - c * c).sqrt() * m.sin()
        return functional.cross_entropy(self.s * z.scatter(1, y[:, None], target), y)


Head = AdaDistill | FeatureLoss | MarginHead


def build_head(recipe: Recipe, num_classes: int, dim: int, ranks: Ranks) -> Head:
    """The head of a recipe's method.

    Args:
        recipe: Its `method` and the options of that method.
        num_classes: Number of identities in the data.
        dim: Embedding size.
        ranks: The processes; AdaDistill shares its classes among them.

    Raises:
        UsageError: Fewer classes than 2 or than ranks.
    """
    if recipe.method == "features":
        return FeatureLoss(recipe.feature_loss, recipe.weight)
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
