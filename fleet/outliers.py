"""Outliers among boards of one kind: another model, other embeddings, another speed, power mode or heat.

Boards of one kind have the same board or card, JetPack, TensorRT, backend and precision.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..runtime.evaluation.gates import CANNOT_JUDGE, VerdictReason
from .board_evidence import BoardEvidence, EngineEvidence, with_verdict

_MAX_Z = 3.5  # Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993: modified z-score
_NORMAL = (
    0.6745  # of the same: 0.75 quantile of the normal distribution, MAD over standard deviation
)
_MIN_BOARDS = 3  # two boards that differ do not tell which one is odd

_SPEED_RATIO = 1.10  # smaller differences of latency are within what `benchmark` calls VALID
_ENERGY_RATIO = 1.25
_COSINE_RATIO = 2.0  # of 1 - cosine: another choice of kernels changes it by less
_EXACT = 1e-6  # of 1 - cosine, below which it is rounding

Key = tuple[str, str, str, str, str]


def judge_outliers(boards: Sequence[BoardEvidence]) -> tuple[BoardEvidence, ...]:
    """Name the boards that differ from the others of their kind.

    Another model or other embeddings cost a board its verdict: a certificate is of one network.
    Another speed, power mode or temperature is named only.

    Args:
        boards: All boards.

    Returns:
        The same boards, with `outliers` and with verdicts that take them into account.
    """
    notes: dict[str, list[str]] = defaultdict(list)
    doubts: dict[str, list[VerdictReason]] = defaultdict(list)
    for board, text, cure in (*_other_models(boards), *_other_embeddings(boards)):
        notes[board].append(text)
        doubts[board].append(VerdictReason(CANNOT_JUDGE, text, cure))
    for board, text in (*_figures(boards), *_other_modes(boards), *_throttled(boards)):
        notes[board].append(text)
    return tuple(
        with_verdict(replace(b, outliers=tuple(notes[b.board])), doubts[b.board])
        if b.board in notes
        else b
        for b in boards
    )


def robust_outliers(values: Sequence[float], min_ratio: float) -> list[int]:
    """Values far from the median, by the modified z-score of their logarithms.

    The score is 0.6745 |x - median| / MAD with MAD the median of |x - median|, and 3.5 its limit
    (Iglewicz and Hoaglin 1993). Half of the values may be arbitrarily wrong.

    Args:
        values: N figures above 0.
        min_ratio: The factor from the median that a value must exceed too.

    Returns:
        Indices of the outliers; none among fewer than three values.
    """
    if len(values) < _MIN_BOARDS:
        return []
    logs = np.log(np.asarray(values, np.float64))
    distance = np.abs(logs - np.median(logs))
    far = (_NORMAL * distance > _MAX_Z * np.median(distance)) & (distance > math.log(min_ratio))
    return [int(index) for index in np.flatnonzero(far)]


def engine_kinds(
    boards: Iterable[BoardEvidence],
) -> dict[Key, list[tuple[str, EngineEvidence]]]:
    """The engines of boards of one kind.

    Args:
        boards: Any boards.

    Returns:
        (kind, JetPack, TensorRT, precision, backend) -> board and engine, in the boards' order.
    """
    kinds: dict[Key, list[tuple[str, EngineEvidence]]] = defaultdict(list)
    for board in boards:
        for engine in board.engines:
            key = board.kind, board.jetpack, board.tensorrt, engine.precision, engine.backend
            kinds[key].append((board.board, engine))
    return dict(kinds)


def _other_models(boards: Iterable[BoardEvidence]) -> Iterator[tuple[str, str, str]]:
    holders: dict[str, dict[str, str]] = defaultdict(dict)
    for board in boards:
        for engine in board.engines:
            for name, sha256 in engine.models.items():
                holders[name][board.board] = sha256
    for name, digests in holders.items():
        for odd, sha256, usual in _minority(digests):
            than = (
                f"most boards ({usual[:12]})" if usual else "other boards; no model has a majority"
            )
            text = f"another model: {name} ({sha256[:12]}) than {than}"
            yield odd, text, "roll out the fleet's bundle to it"


def _other_embeddings(boards: Sequence[BoardEvidence]) -> Iterator[tuple[str, str, str]]:
    for key, engines in engine_kinds(boards).items():
        known = [(board, e.cosine) for board, e in engines if e.cosine is not None]
        distances = [max(_EXACT, 1 - cosine) for _, cosine in known]
        middle = _median(distances)
        for index in robust_outliers(distances, _COSINE_RATIO):
            board, cosine = known[index]
            text = (
                f"other embeddings: {key[3]} has min cosine {cosine:.6f}, boards of its kind"
                f" {1 - middle:.6f}"
            )
            yield board, text, "remove the release on the board and roll out again"


def _figures(boards: Sequence[BoardEvidence]) -> Iterator[tuple[str, str]]:
    for key, engines in engine_kinds(boards).items():
        figures = (
            ("p50", "ms", _SPEED_RATIO, [(b, e.p50_ms) for b, e in engines]),
            ("energy", "mJ", _ENERGY_RATIO, [(b, e.energy_mj) for b, e in engines]),
        )
        for name, unit, ratio, rows in figures:
            known = [(board, value) for board, value in rows if value is not None and value > 0]
            middle = _median([value for _, value in known])
            for index in robust_outliers([value for _, value in known], ratio):
                board, value = known[index]
                yield (
                    board,
                    f"{name} {key[3]} {value:.3g} {unit}, boards of its kind {middle:.3g} {unit}",
                )


def _other_modes(boards: Iterable[BoardEvidence]) -> Iterator[tuple[str, str]]:
    kinds: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for board in boards:
        timed = (engine.power_mode for engine in board.engines if engine.power_mode)
        if mode := next(timed, board.power_mode):
            kinds[board.kind, board.jetpack][board.board] = mode
    for modes in kinds.values():
        for name, mode, usual in _minority(modes):
            than = (
                f"most boards of its kind {usual}" if usual else "other boards of its kind others"
            )
            yield name, f"power mode {mode}, {than}: `sudo nvpmodel -m N` sets one"


def _throttled(boards: Iterable[BoardEvidence]) -> Iterator[tuple[str, str]]:
    for board in boards:
        for why in dict.fromkeys(why for engine in board.engines for why in engine.throttled):
            yield board.board, f"throttled while it was timed: {why}; cool it, then roll out again"


def _minority(values: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Boards without the value that more than half of them have: board, its value, the usual one."""
    if len(set(values.values())) < 2:
        return
    usual, count = Counter(values.values()).most_common(1)[0]
    usual = usual if 2 * count > len(values) else ""
    for board, value in values.items():
        if value != usual:
            yield board, value, usual


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan
