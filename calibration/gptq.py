"""Rounding weights to the data: an error of one weight is taken back by those still to be rounded.

Rounding to nearest minimises the error of each weight; what counts is the error of their sum over
real inputs. Column after column is rounded, and the columns to come are shifted by what makes the
sum err least: the inverse of the inputs' covariance says how much.
(E. Frantar et al., GPTQ, 2023, after optimal brain surgeon; its order of the loudest inputs first.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ..arrays import F32, F64
from ..graph.layer_weights import layer_columns, output_axis, weight_scales
from .covariance import InputCovariance
from .equalization import equalize
from .table import CalibrationTable

_BLOCK = 64
"""Columns that are rounded before the rest hears of it; only speed depends on it."""


@dataclass(frozen=True)
class RoundedWeight:
    """A layer's scaled weights, whole INT8 steps of theirs, and `shift (O,)` for its bias: the mean
    of what rounding took away."""

    weight: F32
    shift: F64


def round_weights(
    model: onnx.ModelProto, table: CalibrationTable, moments: Mapping[str, InputCovariance]
) -> dict[str, RoundedWeight]:
    """Layer -> its weights rounded for the inputs whose `moments` were seen.

    Layers whose moments overflowed are left out.
    """
    scaled = equalize(model, table.scales)
    constants = {t.name: t for t in scaled.graph.initializer}
    found = {}
    for node in scaled.graph.node:
        if node.name not in moments or node.input[0] not in table.ranges:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        columns = layer_columns(node, weight).astype(np.float64)
        flat = columns.reshape(len(columns), -1)
        scale = _repeated(table.scales.get(node.input[0], np.ones(1)), flat.shape[1])
        seen = moments[node.name]
        spread = seen.covariance(node.op_type != "MatMul") / np.outer(scale, scale)
        if not np.isfinite(spread).all():
            continue
        # What the rounding of the inputs adds: every input errs for itself, by up to half a step.
        spread[np.diag_indices_from(spread)] += (table.ranges[node.input[0]] / 127.0) ** 2 / 12.0
        result = gptq_round(flat, weight_scales(node, weight).astype(np.float64), spread)
        mean = seen.total / max(1, seen.count) / scale
        rows = result.astype(np.float32).reshape(columns.shape)
        if node.op_type == "Conv":
            rows = rows.reshape(weight.shape)
        else:
            rows = rows[:, :, 0] if output_axis(node, 2) == 0 else rows[:, :, 0].T
        found[node.name] = RoundedWeight(np.ascontiguousarray(rows), (flat - result) @ mean)
    return found


def gptq_round(weights: F64, step: F64, spread: F64) -> F64:
    """`weights (O, n)` as multiples of `step (O,)`, at most 127, so that the error e of each row has
    a small e @ `spread (n, n)` @ e.

    The largest weight of a row keeps its 127 steps: the step can be read off the weights.
    """
    order = np.argsort(-np.diag(spread), kind="stable")
    # The rows of this factor say how an error is passed on to the columns to come.
    factor = np.linalg.cholesky(np.linalg.inv(spread[np.ix_(order, order)])).T
    left, steps = weights[:, order], step[:, None]
    peak = np.abs(left) >= 126.99 * steps
    result = np.where(peak, np.sign(left) * 127.0 * steps, 0.0)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        errors = np.empty((len(left), stop - start))
        for i in range(start, stop):
            nearest = np.clip(np.rint(left[:, i] / step), -127, 127) * step
            result[:, i] = np.where(peak[:, i], result[:, i], nearest)
            errors[:, i - start] = (left[:, i] - result[:, i]) / factor[i, i]
            left[:, i + 1 : stop] -= np.outer(errors[:, i - start], factor[i, i + 1 : stop])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return result[:, np.argsort(order)]


def _repeated(scale: F64, wide: int) -> F64:
    """A scale per channel as one per input of the layer."""
    return np.repeat(scale, wide // len(scale))
