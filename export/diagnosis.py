"""What a diagnosis of the input contract found, and its words; who tries is diagnose.py."""

from dataclasses import dataclass, replace
from typing import Any

from ..faces.contract import PRESETS, InputSpec

SEPARATES = 1.5
"""d' below this is no recognition: about 23 % equal error rate for normal scores."""


@dataclass(frozen=True)
class Candidate:
    """One way to feed the network; `tied` with the first of the ranking."""

    name: str
    spec: InputSpec
    view: str
    d_prime: float
    tied: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "channels": self.spec.channels,
            "input": self.spec.to_json(),
            "view": self.view,
            "d_prime": self.d_prime,
            "tied": self.tied,
        }


@dataclass(frozen=True)
class Diagnosis:
    """Candidates, the best first, for a network whose file or bundle says `declared`, if any."""

    ranking: tuple[Candidate, ...]
    declared: InputSpec | None
    identities: int
    images: int

    @property
    def best(self) -> Candidate:
        return self.ranking[0]

    @property
    def separates(self) -> bool:
        """Whether any candidate tells these people apart."""
        return self.best.d_prime >= SEPARATES

    @property
    def right(self) -> bool | None:
        """Whether the declared contract is the best or ties with it; None where nothing is known."""
        if self.declared is None or not self.separates:
            return None
        return any(c.tied and like(c.spec, self.declared) for c in self._upright())

    @property
    def verdict(self) -> str:
        best, rivals = self.best, [c for c in self._upright() if c.tied][1:]
        if not self.separates:
            return (
                f"nothing separates these people (best d' {best.d_prime:.2f}): the faces are not"
                " aligned, the labels are wrong, or the network recognises none"
            )
        names = " or ".join(_told(c) for c in [best, *rivals])
        said = f"trained with {names}"
        if rivals:
            said += f": a tie, d' {best.d_prime:.2f}, the faces cannot tell them apart"
        if best.view not in ("upright", "mirrored"):
            said += f"; the faces are {best.view}"
        if self.right is False and self.declared:
            said += f"; the declared contract ({self.declared.describe()}) is wrong"
        return said

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "right": self.right,
            "separates": self.separates,
            "declared": self.declared.to_json() if self.declared else None,
            "identities": self.identities,
            "images": self.images,
            "ranking": [candidate.to_json() for candidate in self.ranking],
        }

    def _upright(self) -> list[Candidate]:
        return [c for c in self.ranking if c.view == self.best.view]


def like(a: InputSpec, b: InputSpec) -> bool:
    """Whether two contracts make the same input of a face."""
    return replace(a, l2_normalised=False) == replace(b, l2_normalised=False)


def _told(candidate: Candidate) -> str:
    if candidate.name in PRESETS and candidate.spec.channels == "RGB":
        return f"--preset {candidate.name} ({candidate.spec.describe()})"
    return candidate.spec.describe()
