"""What one board has to show, as a value: its engines, their verdicts and figures, and what a roll-out noted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from unicodedata import category

from ..runtime.compatibility import Compatibility
from ..runtime.evaluation.gates import CANNOT_JUDGE, VerdictReason, overall_verdict

ROLL_OUT, CHECK, ROLL_BACK = "fleet.json", "fleet-check.json", "fleet-roll-back.json"
"""What a playbook notes about its boards."""


AGAIN = "run the same roll-out again: it does what is missing"

_MAX_TEXT = 300  # characters of a text that is shown


@dataclass(frozen=True)
class EngineEvidence:
    """One engine of a board; what was not measured is None.

    Attributes:
        precision: "fp32", "fp16", "fp8" or "int8".
        verdict: Of all reports that judge it: "PASSED", "FAILED" or "CANNOT JUDGE"; "" without any.
        models: Model file -> sha256 of what the engine was made of.
        cosine: Lowest cosine of its golden embeddings with the original network's.
        far: The FAR of `tar`.
        tar: True accept rate, a fraction.
        tar_interval_95: Its 95 % interval.
        p50_ms, p99_ms: Latency of the smallest batch.
        timing: "VALID" or "INVALID"; "" where it was not timed.
        energy_mj: Of a face, above the machine at rest.
        memory_mb: Largest use of memory while it was timed.
        temperature_c: Highest of any sensor.
        throttled: Why the board slowed down meanwhile.
        power_mode: During the benchmark.
    """

    precision: str
    backend: str
    verdict: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    cosine: float | None = None
    far: str = ""
    tar: float | None = None
    tar_interval_95: tuple[float, float] | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    timing: str = ""
    energy_mj: float | None = None
    memory_mb: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    power_mode: str = ""


@dataclass(frozen=True)
class BoardEvidence:
    """What one board has to show.

    Attributes:
        board: Its name in the inventory, which is that of its folder.
        kind: The board's, GPU's or CPU's name; "" where no file tells.
        jetpack: Such as "JetPack 6, L4T 36.4.3"; "" elsewhere.
        driver: The CUDA version that the driver serves.
        backends: Backends that are ready there, of `doctor`.
        problems: What `doctor` found.
        reasons: Why the verdict is not PASSED.
        plan: What it will take, by `fr-edge targets`; of a check only, and None without a GPU.
        bundle: sha256 of the pack that was rolled out last; "" where no roll-out noted it.
        outliers: In what it differs from the boards of its kind.
        verdict: PASSED when an engine was judged and nothing speaks against any of them.
    """

    board: str
    kind: str = ""
    jetpack: str = ""
    tensorrt: str = ""
    driver: str = ""
    power_mode: str = ""
    backends: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    plan: Compatibility | None = None
    engines: tuple[EngineEvidence, ...] = ()
    reasons: tuple[VerdictReason, ...] = ()
    bundle: str = ""
    outliers: tuple[str, ...] = ()
    verdict: str = ""


@dataclass(frozen=True)
class BoardState:
    """What a roll-out notes about a board, in `board.json`.

    Attributes:
        state: "at work", "done" or "failed".
        verb: "check", "roll-out" or "roll-back".
        bundle: sha256 of the pack that was rolled out.
        run: Names the run of the playbook.
        step: What failed.
        error: What was found.
        hint: What to do.
        release: The release's name on the board.
        changed: Whether the board's current release was switched.
    """

    state: str
    verb: str = ""
    bundle: str = ""
    run: str = ""
    step: str = ""
    error: str = ""
    hint: str = ""
    release: str = ""
    changed: bool = False


def with_verdict(board: BoardEvidence, reasons: Iterable[VerdictReason] = ()) -> BoardEvidence:
    """A board with its verdict: FAILED before CANNOT JUDGE before PASSED.

    Args:
        board: With its engines and reasons.
        reasons: Further ones.
    """
    reasons = tuple(dict.fromkeys((*board.reasons, *reasons)))
    judged = [engine.verdict for engine in board.engines if engine.verdict] or [CANNOT_JUDGE]
    verdict = overall_verdict([*judged, *(reason.verdict for reason in reasons)])
    return replace(board, reasons=reasons, verdict=verdict)


def reason_text(board: BoardEvidence) -> tuple[str, str]:
    """Why a board is not PASSED, and what to do, each as one text; "" where there is none.

    Args:
        board: With its reasons.
    """
    texts = dict.fromkeys(reason.reason for reason in board.reasons)
    cures = dict.fromkeys(reason.cure for reason in board.reasons if reason.cure)
    return "; ".join(texts), "; ".join(cures)


def state_reason(state: BoardState) -> VerdictReason | None:
    """Why a board that a roll-out has left is not PASSED.

    Args:
        state: What the roll-out noted.

    Returns:
        The reason; None for a board where all was done, and its evidence decides.
    """
    if state.state == "done":
        return None
    if state.state == "at work":
        text, hint = "the connection broke off, or the roll-out was ended", AGAIN
    else:
        text = f"{state.step}: {state.error}" if state.step else state.error or state.state
        hint = state.hint
    return VerdictReason(CANNOT_JUDGE, plain_text(text), plain_text(hint))


def plain_text(text: str) -> str:
    """A text from somebody else's file: no control or formatting characters, at most 300 characters.

    Args:
        text: Any text.
    """
    if not (text.isascii() and text.isprintable()):
        shown = (
            " " if c in "\n\t\r" else c if category(c)[0] != "C" and category(c) not in ("Zl", "Zp")
            else c.encode("unicode_escape", "surrogatepass").decode("ascii")
            for c in text[: 4 * _MAX_TEXT]
        )  # fmt: skip
        text = " ".join("".join(shown).split())
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
