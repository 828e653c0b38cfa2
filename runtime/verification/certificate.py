"""The certificate: all that `verify` found, as a value and as the JSON that scripts rely on."""

from dataclasses import dataclass
from typing import Any

from ... import __version__
from ..accuracy.drift import Drift
from ..accuracy.separation import Separation
from ..machine.device import describe_device
from .gates import Gate
from .reference import Proof
from .teacher import Gallery


@dataclass(frozen=True)
class Verified:
    """What `verify` found; `drift` is over the given faces, or the golden ones without any.
    `findings` say what is wrong where something is."""

    engine: str
    backend: str
    reference: str
    proof: Proof
    drift: Drift
    faces: dict[str, Any] | None
    separation: Separation | None
    mixed: dict[str, str | float] | None
    teacher: Gallery | None
    gates: tuple[Gate, ...]
    findings: tuple[str, ...]
    not_measured: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "tar": {},
            "accuracy": None,
            "curves": None,
            "strata": [],
            "degraded": [],
        }
        return {
            "passed": self.passed,
            "engine": self.engine,
            "backend": self.backend,
            "reference": self.reference,
            "cosine": self.drift.to_json(),
            "worst": [{"face": key, "cosine": cosine} for key, cosine in self.drift.worst],
            **(self.separation.to_json() if self.separation else told),
            "gallery": self.mixed,
            "teacher": self.teacher.to_json() if self.teacher else None,
            "gates": [gate.to_json() for gate in self.gates],
            "findings": list(self.findings),
            "golden": {
                "original": self.proof.origin,
                "fp32_min_cosine": round(self.proof.fp32, 6),
                "engine": self.proof.engine.to_json(),
            },
            "faces": self.faces,
            "not_measured": list(self.not_measured),
            "fr_edge": __version__,
            "device": describe_device().to_json(),
        }
