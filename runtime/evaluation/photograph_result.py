"""What `verify --photos` measured, with the shape of its JSON report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..._version import __version__
from ...arrays import I64
from ...bundle.provenance import Provenance
from ...metrics.comparison import VerificationComparison
from ...metrics.detection import DetectionDrift
from ...metrics.rates import RateChange
from .gates import Gate, VerdictReason
from .reference import FacesSummary
from .result import REPORT_SCHEMA, OpenedFile

DETECTION, NETWORK, ALIGNMENT = "detection", "network", "alignment"


@dataclass(frozen=True)
class PhotographCounts:
    """How many photographs show what.

    Attributes:
        all: Photographs that were given.
        reference: In which the FP32 detector finds a face.
        engine: In which the device's detector finds one.
        missed: In which only the FP32 detector finds one.
        unreadable: That cannot be decoded, or whose landmarks cannot be those of a face.
        compared: In which both find one: the rates are over these.
    """

    all: int
    reference: int
    engine: int
    missed: int
    unreadable: int
    compared: int


@dataclass(frozen=True)
class ChainStep:
    """What one step of the chain from a photograph to an embedding costs.

    Attributes:
        step: "detection" for the device's landmarks in place of the FP32 detector's, "network" for the
            engine in place of the network in FP32, on faces cut out by the host, "alignment" for
            faces that the engine cuts out itself.
        mean_cosine: Mean cosine of the embeddings before and after the step.
        min_cosine: The lowest one.
        tar: FAR by name -> TAR before and after the step; empty without several people.
    """

    step: str
    mean_cosine: float
    min_cosine: float
    tar: Mapping[str, RateChange] = field(default_factory=dict)


@dataclass(frozen=True)
class PhotographResult:
    """What `verify_photographs` measured: from a photograph to a decision, device against host.

    Attributes:
        passed: Whether the verdict is PASSED.
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE".
        engine: The face network's precision.
        backend: Of the face network.
        judged: "engine", or "graph" where ONNX graphs were judged in place of engines.
        artifact: The face network's file that was judged.
        detector: The detector's file that was judged.
        detector_engine: The detector's precision.
        family: Of the detector.
        input_kind: What the engine takes: "tensor", "crop" or "frame".
        name: The photographs' name.
        reference: What it was compared with, in words.
        detection: The device's detector against the FP32 one, over every face.
        photographs: How many show what.
        faces: The faces that the rates are over.
        min_cosine: Lowest cosine of a photograph's embeddings by both chains.
        tar: FAR by name -> TAR of both chains, over the photographs in which both find a face.
        tar_with_missed: FAR by name -> the device's TAR where a pair with a missed face counts as
            refused; None where it is not measured.
        steps: What detection, network and alignment each cost, in this order.
        gates: Every limit with its verdict.
        reasons: Why the verdict is not PASSED.
        findings: What looks wrong and decides nothing, in words.
        not_measured: In words.
        report: The report's path within the bundle.
    """

    passed: bool
    verdict: str
    engine: str
    backend: str
    judged: str
    artifact: OpenedFile
    detector: OpenedFile
    detector_engine: str
    family: str
    input_kind: str
    name: str
    reference: str
    detection: DetectionDrift
    photographs: PhotographCounts
    faces: FacesSummary | None
    min_cosine: float | None
    tar: Mapping[str, RateChange]
    tar_with_missed: Mapping[str, float | None]
    steps: tuple[ChainStep, ...]
    gates: tuple[Gate, ...]
    reasons: tuple[VerdictReason, ...] = ()
    findings: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    report: str = ""
    fr_edge: str = __version__
    schema: int = REPORT_SCHEMA
    device: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None


def rates_with_missed(
    comparison: VerificationComparison | None, labels: I64, found: I64, kept: I64
) -> dict[str, float | None]:
    """The device's TAR over all pairs of photographs in which the FP32 detector finds a face.

    Args:
        comparison: Of the photographs that both chains embed; None without several people.
        labels: Identity of each photograph, `(P,) int64`.
        found: Photographs in which the FP32 detector finds a face.
        kept: Photographs that both chains embed.
    """
    if comparison is None:
        return {}
    everything, compared = (_genuine_pairs(labels[indices]) for indices in (found, kept))
    share = compared / max(everything, 1)
    return {
        far: None if rate.engine is None else rate.engine * share
        for far, rate in comparison.tar.items()
    }


def summarize_photographs(folder: Path, labels: I64 | None) -> FacesSummary | None:
    """The faces of photographs as reports name them, without the folders above theirs.

    Args:
        folder: Of the photographs.
        labels: Identity of each that both chains embed, `(K,) int64`; None where it is not known.
    """
    if labels is None:
        return None
    genuine, count = _genuine_pairs(labels), len(labels)
    return FacesSummary(
        folder.resolve().name,
        count,
        len(np.unique(labels)),
        False,
        genuine,
        count * (count - 1) // 2 - genuine,
    )


def _genuine_pairs(labels: I64) -> int:
    counts = np.bincount(labels)
    return int((counts * (counts - 1) // 2).sum())
