"""The dimensions of an embedding, one by one: does each follow the reference's over the faces?"""

import numpy as np

from ..arrays import F32, F64
from .verification import normalise

CORRELATED_FACES = 16  # with fewer, a correlation over faces is chance

_VARYING = 0.25  # of the mean variance of a dimension; one that hardly varies is mostly noise
_NO_VARIANCE = 1e-14  # of unit embeddings: rounding of float32 alone
# Sum of the variances of unit embeddings, that is 1 minus the mean cosine of two faces: below it a
# network embeds all faces alike, and the rounding of FP16 and INT8 is as large as what it tells apart.
_ALIKE = 1e-4


def min_dimension_correlation(reference: F32, engine: F32) -> float | None:
    """The dimension of the embedding that follows the reference's least.

    Two dimensions that are swapped, one that is dead or has another sign and an output that is the
    same for all faces of a weak network hardly move the cosine of long embeddings.

    Args:
        reference: `(N, D) float32` by the reference.
        engine: `(N, D) float32` of the same faces by the engine.

    Returns:
        The lowest of the D Pearson correlations over the N faces, of embeddings of unit length, -1
        to 1; 0 for a dimension that is constant in the engine alone. Dimensions of the reference
        with less than a quarter of the mean variance do not count. None with fewer than 16 faces, or
        where the reference embeds all of them alike: their mean cosine is .9999 or more.
    """
    if len(reference) < CORRELATED_FACES:
        return None
    units = [normalise(rows) for rows in (reference, engine)]
    a, b = (rows - rows.mean(0, dtype=np.float64).astype(np.float32) for rows in units)
    variance, other = (_mean_products(rows, rows) for rows in (a, b))
    if variance.sum() <= _ALIKE:
        return None
    varying = variance > _VARYING * variance.mean()
    covariance = _mean_products(a, b)
    scale = np.sqrt(variance * np.maximum(other, _NO_VARIANCE))
    return float(np.clip(covariance[varying] / scale[varying], -1, 1).min())


def min_length_ratio(reference: F32, engine: F32) -> float:
    """How far embeddings are from the reference's length, which no cosine shows.

    A network that lost its last normalization or scale gives other dot products and distances.

    Args:
        reference: `(N, D) float32` by the reference.
        engine: `(N, D) float32` of the same faces by the engine.

    Returns:
        The lowest ratio of the shorter to the longer embedding of a face, 0 to 1.
    """
    a, b = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (reference, engine))
    return float((np.minimum(a, b) / np.maximum(np.maximum(a, b), _NO_VARIANCE)).min())


def _mean_products(a: F32, b: F32) -> F64:
    """Mean over the rows of the products, in float64 and without a copy of that size."""
    products: F64 = np.einsum("nd,nd->d", a, b, dtype=np.float64) / len(a)
    return products
