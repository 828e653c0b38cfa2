"""The three verdicts, and what stands behind one that is not PASSED."""

from collections.abc import Iterable
from dataclasses import dataclass

PASSED = "PASSED"
FAILED = "FAILED"
CANNOT_JUDGE = "CANNOT JUDGE"


@dataclass(frozen=True)
class VerdictReason:
    """Why a verdict is not PASSED.

    Attributes:
        verdict: "FAILED" or "CANNOT JUDGE".
        reason: What was found, in words.
        cure: What to do next, in words; empty where the reason names it.
    """

    verdict: str
    reason: str
    cure: str = ""


def overall_verdict(verdicts: Iterable[str]) -> str:
    """The verdict of several: FAILED before CANNOT JUDGE before PASSED.

    Args:
        verdicts: The single ones.
    """
    given = set(verdicts)
    return FAILED if FAILED in given else CANNOT_JUDGE if CANNOT_JUDGE in given else PASSED
