"""Margins on the target cosine, in closed form on B values.

ArcFace (arXiv 1801.07698): cos(theta + m) = c cos m - sqrt(1 - c^2) sin m, whose derivative by c is
cos m + c / sqrt(1 - c^2) sin m. CosFace (arXiv 1801.09414): c - m, derivative 1.
"""

import math

import torch
from torch import Tensor

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
