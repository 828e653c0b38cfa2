"""`accept`: one command for whoever has a board, and one file that may be sent.

It builds FP32, FP16 and INT8 engines of a small sample network and of the user's bundle, verifies
and times each, and writes down what the board is. It works on copies; the file holds no names.
"""

import hashlib
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...bundle.bundle import open_bundle
from ...bundle.manifest import Bundle
from ...bundle.trust import requiring_signatures
from ...documents import encode_json, read_json, to_builtins
from ...errors import BundleError, DataError, FrEdgeError, UsageError
from ...files import real_path, write_atomic
from ...interruption import keeping
from ...progress import Track, silent
from ..evaluation.gates import CANNOT_JUDGE, PASSED, overall_verdict
from ..evaluation.limits import with_policy_signatures
from ..evaluation.select_precision import time_engines
from ..fingerprint import SOURCES, machine_fingerprint
from ..machine.backends import BACKENDS, lacking, system_tensorrt
from ..machine.device import describe_device, find_gpus
from ..onnxruntime_session import ONNXRUNTIME
from ..selftest import make_sample_bundle
from .disclosure import copy_without_names, machine_facts, machine_names, without_names
from .engine_check import EngineCheck, check_engine_here, fp8_lack, rebuild

logger = logging.getLogger(__name__)

SAMPLE, YOURS = "sample", "yours"

_SCHEMA = 1
_ORDER = ("int8", "fp16", "fp32")  # what matters most comes first: the time may not suffice
_BUDGET_S = 540.0
_TIMING_S = 3.0  # per engine, side by side
_EQUAL = 0.03  # of the latency, within which the more exact engine is to be shipped
_REHEARSAL = "rehearsal, no GPU: the steps ran on this CPU with onnxruntime; no board and no TensorRT was tried"


@dataclass(frozen=True)
class ShipChoice:
    """Which engine of a bundle to ship on this board.

    Attributes:
        bundle: "sample" or "yours".
        ship: "int8", "fp16" or "fp32".
        times_ms: Precision -> fastest run of one face, timed in turns with the others.
        certain: Whether the figures of all engines are VALID.
        text: The reason.
    """

    bundle: str
    ship: str
    times_ms: Mapping[str, float]
    certain: bool
    text: str


@dataclass(frozen=True)
class AcceptResult:
    """What an acceptance gathered; the file that is sent holds this without names.

    Attributes:
        verdict: "PASSED", "FAILED" or "CANNOT JUDGE"; a rehearsal is never PASSED.
        rehearsal: Whether it ran without a GPU.
        reasons: Why it is not PASSED.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx"; "" where none could be used.
        machine_key: What must be equal for a later run to go on with this one.
        model_key: The same of the user's bundle, "" without one.
        notes: What a reader should know.
        machine: Versions, power mode, clocks and sensors.
        engines: One for each engine that was tried.
        choices: Which engine to ship, per bundle.
        left: Steps that were not done.
        time: Of the end, UTC, ISO 8601.
        seconds: Of all runs together.
    """

    verdict: str
    rehearsal: bool
    reasons: tuple[str, ...]
    backend: str
    machine_key: Mapping[str, Any]
    model_key: str = ""
    notes: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[EngineCheck, ...] = ()
    choices: tuple[ShipChoice, ...] = ()
    left: tuple[str, ...] = ()
    time: str = ""
    seconds: float = 0.0
    fr_edge: str = __version__
    acceptance: int = _SCHEMA


def accept(
    bundle: Bundle | str | Path | None = None,
    backend: str = "auto",
    out: Path | None = None,
    track: Track = silent,
) -> tuple[AcceptResult, Path]:
    """Try everything that a board is for, and write it into one file after every step.

    A run that was interrupted, or that had no time left, goes on when it is called again with the
    same file: engines that passed are not built again. Nothing is changed but the file, and a hidden
    folder beside it that is removed at the end.

    Args:
        bundle: A calibrated bundle to try besides the sample; it is copied.
        backend: "auto" for TensorRT, else TensorRT-RTX; "onnxruntime" rehearses on the CPU.
        out: The file; by default `accept-DEVICE.json` here.
        track: Shows progress.

    Returns:
        The result, and the file.

    Raises:
        UsageError: There is no such backend.
        BundleError: The bundle is damaged or lacks model.onnx.
        DataError: The file is not an acceptance, or that of another machine or version.
    """
    if backend not in ("auto", *BACKENDS):
        raise UsageError(f"no backend {backend!r}", f"backends: auto, {', '.join(BACKENDS)}")
    source = open_bundle(bundle) if isinstance(bundle, str | Path) else bundle
    source = with_policy_signatures(source, None) if source is not None else None
    if source is not None and SOURCES["fp32"] not in source:
        raise BundleError(f"{source.root} has no model.onnx", "run `fr-edge export` first")
    with system_tensorrt() as note:
        lacks = {name: lacking(name) for name in _candidates(backend)}
        chosen = next((name for name, lack in lacks.items() if not lack), "")
        file = out or Path(f"accept-{_slug(chosen)}.json")
        run = _Acceptance(file, chosen, source, track)
        run.begin(note, lacks)
        if chosen:
            # What runs is built here, of files whose signatures `source` demands where they must be.
            with requiring_signatures(required=False), keeping(lambda: f"{file} is kept"):
                run.steps()
    return run.result, file


def _candidates(backend: str) -> tuple[str, ...]:
    return tuple(n for n in BACKENDS if n != ONNXRUNTIME) if backend == "auto" else (backend,)


def _slug(backend: str) -> str:
    if backend == ONNXRUNTIME:
        return "rehearsal"
    names = describe_device().gpu
    return re.sub(r"[^a-z0-9]+", "-", names[0].lower()).strip("-") if names else "nothing-ran"


class _Acceptance:
    """One run: the result so far, and where it is kept."""

    def __init__(self, file: Path, backend: str, source: Bundle | None, track: Track) -> None:
        self.file, self.backend, self.source, self.track = file, backend, source, track
        self.work = file.with_name(f".{file.name}.work")
        self.names = machine_names() | _names_of(source, file)
        self.start, self.before_s = time.monotonic(), 0.0
        key = machine_fingerprint(backend) if backend else {}
        self.result = AcceptResult(
            CANNOT_JUDGE,
            backend == ONNXRUNTIME,
            (),
            backend,
            self._clean({"fr_edge": __version__, **key}),
            _model_key(source) if source else "",
        )

    def _is_whole(self, choice: ShipChoice, done: set[tuple[str, str]]) -> bool:
        order = self._order(choice.bundle)
        return set(choice.times_ms) == set(order) and {(choice.bundle, p) for p in order} <= done

    def _order(self, kind: str) -> tuple[str, ...]:
        """The precisions to try: FP8 where the user's bundle has it and the GPU takes it."""
        fp8 = kind == YOURS and self.source is not None and SOURCES["fp8"] in self.source
        return (*_ORDER, "fp8") if fp8 and not fp8_lack(self.backend) else _ORDER

    def _clean(self, value: Any) -> Any:
        return without_names(to_builtins(value), self.names)

    def begin(self, note: str, lacks: Mapping[str, str]) -> None:
        """Take over what an earlier run gathered, and look at the machine."""
        if earlier := self._earlier():
            same = earlier.model_key == self.result.model_key
            engines = [e for e in earlier.engines if e.verdict == PASSED]
            engines = [e for e in engines if e.bundle == SAMPLE or same]
            done = {(e.bundle, e.precision) for e in engines}
            choices = [c for c in earlier.choices if self._is_whole(c, done)]
            self.before_s = earlier.seconds
            self.result = replace(self.result, engines=tuple(engines), choices=tuple(choices))
            logger.info(
                "%s: %d engines passed before and are not repeated; remove the file to measure"
                " everything again",
                self.file,
                len(engines),
            )
        notes = [note] if note else []
        if not self.backend:
            tried = [f"{name} was not tried: {lack}" for name, lack in lacks.items()]
            if find_gpus().lack:
                notes.append("`fr-edge accept --backend onnxruntime` rehearses without a GPU")
            self.result = replace(self.result, reasons=tuple(tried))
        if self.source and SOURCES["fp8"] in self.source and (lack := fp8_lack(self.backend)):
            notes.append(f"yours fp8 was not tried: {lack}")
        for text in notes:
            logger.info("%s", text)
        self.result = replace(self.result, notes=tuple(notes), machine=machine_facts())
        self._save()

    def _earlier(self) -> AcceptResult | None:
        if not self.file.exists():
            return None
        other = DataError(
            f"{self.file} is not an acceptance of this machine, backend and version of fr-edge",
            "choose another --out, or remove it",
        )
        try:
            earlier = read_json(self.file, AcceptResult)
        except DataError as error:
            raise other from error
        if not earlier.backend:  # nothing had run
            return None
        if earlier.machine_key != self.result.machine_key or earlier.acceptance != _SCHEMA:
            raise other
        return earlier

    def steps(self) -> None:
        """Every step that is not done, until the time is over."""
        kinds = (SAMPLE, YOURS) if self.source else (SAMPLE,)
        steps = [(kind, what) for kind in kinds for what in (*self._order(kind), "compare")]
        done = {(e.bundle, e.precision) for e in self.result.engines}
        done |= {(c.bundle, "compare") for c in self.result.choices}
        todo = [step for step in steps if step not in done]
        for count, (kind, what) in enumerate(self.track(todo, "accepting", len(todo))):
            self.result = replace(self.result, left=tuple(f"{k} {w}" for k, w in todo[count:]))
            if count and self._over(kind):  # one step at least, so that repeating it ends
                break
            if what == "compare":
                self._compare(kind)
            else:
                self._engine(kind, what)
            self.result = replace(self.result, left=self.result.left[1:])
            self._save()
        else:
            self.result = replace(self.result, left=())
            shutil.rmtree(self.work, ignore_errors=True)
        self._save()

    def _over(self, kind: str) -> bool:
        """Whether an engine more, that takes as long as the longest so far, would take too long."""
        longest = max((e.seconds for e in self.result.engines if e.bundle == kind), default=0.0)
        return time.monotonic() - self.start + longest > _BUDGET_S

    def _bundle(self, kind: str) -> Path:
        """The folder of the sample or of the user's copy; made where an earlier run left none."""
        root = self.work / f"{kind}.bundle"
        last = SOURCES["int8" if kind == SAMPLE else "fp32"]  # the file that is written last
        if not (root / last).exists():
            shutil.rmtree(root, ignore_errors=True)
            self.work.mkdir(parents=True, exist_ok=True)
            if self.source is None or kind == SAMPLE:
                logger.info("making the sample network and calibrating it")
                with _collected_log():
                    make_sample_bundle(root, self.track)
            else:
                copy_without_names(self.source, root)
        return root

    def _engine(self, kind: str, precision: str) -> None:
        root = self._bundle(kind)
        with _collected_log() as log:
            check = check_engine_here(root, kind, precision, self.backend)
        self.result = replace(
            self.result, engines=(*self.result.engines, replace(check, log=tuple(log)))
        )
        p50 = check.benchmark["runs"][0]["latency_ms"]["p50"] if check.benchmark else None
        logger.info(
            "%s %s: %s in %.0f s%s%s",
            *(kind, precision, check.verdict, check.seconds),
            "" if p50 is None else f", p50 {p50:.3f} ms",
            f": {'; '.join(check.problems)}" if check.problems else "",
        )

    def _compare(self, kind: str) -> None:
        checks = [e for e in self.result.engines if e.bundle == kind and e.verdict == PASSED]
        if not checks:
            return
        root, precisions = self._bundle(kind), [e.precision for e in checks]
        try:
            with _collected_log():
                for precision in precisions:
                    rebuild(root, precision, self.backend)
                times = time_engines(root, precisions, self.backend, 1, _TIMING_S)
        except FrEdgeError as error:
            self.result = replace(
                self.result, notes=(*self.result.notes, f"{kind}: not compared: {error.message}")
            )
            return
        valid = all(e.benchmark and e.benchmark["verdict"] == "VALID" for e in checks)
        cosines = {e.precision: e.cosine["min"] for e in checks}
        choice = choose_engine(kind, times, cosines, certain=valid)
        self.result = replace(self.result, choices=(*self.result.choices, choice))
        logger.info("%s", choice.text)

    def _save(self) -> None:
        result = self.result
        reasons = tuple(
            f"{e.bundle} {e.precision}: {text}" for e in result.engines for text in e.problems
        )
        verdicts = [e.verdict for e in result.engines]
        if result.rehearsal:
            reasons = (_REHEARSAL, *reasons)
            verdicts.append(CANNOT_JUDGE)
        if result.left:
            text = f"not done yet: {', '.join(result.left)}; the same command again goes on"
            reasons, verdicts = (*reasons, text), [*verdicts, CANNOT_JUDGE]
        if not result.engines:
            reasons, verdicts = result.reasons or reasons, [CANNOT_JUDGE]
        self.result = replace(
            result,
            verdict=overall_verdict(verdicts),
            reasons=reasons,
            time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=self.before_s + time.monotonic() - self.start,
        )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, encode_json(self._clean(self.result)))


def choose_engine(
    bundle: str,
    times_ms: Mapping[str, float],
    min_cosine: Mapping[str, float],
    *,
    certain: bool,
) -> ShipChoice:
    """The engine to ship: the fastest, and of those that are equally fast the most exact one.

    Args:
        bundle: "sample" or "yours".
        times_ms: Precision -> milliseconds; engines that passed.
        min_cosine: Precision -> lowest cosine with the original network.
        certain: Whether the benchmarks of all of them are VALID.
    """
    fastest = min(times_ms.values())
    equal = [name for name, ms in times_ms.items() if ms <= (1 + _EQUAL) * fastest]
    ship = max(equal, key=lambda name: min_cosine[name])
    rows = sorted(times_ms.items(), key=lambda row: row[1])
    parts = [f"{bundle}: {', '.join(f'{name} {ms:.3f} ms' for name, ms in rows)}"]
    if {"int8", "fp16"} <= set(times_ms):
        parts.append(f"INT8 takes {times_ms['int8'] / times_ms['fp16']:.2f} of FP16's time")
    parts.append(f"ship {ship}")
    if len(equal) > 1:
        parts.append(f"{' and '.join(equal)} differ by less than {_EQUAL:.0%}, it is more exact")
    if not certain:
        parts.append("not certain: a benchmark was INVALID, repeat it on a quiet machine")
    return ShipChoice(bundle, ship, times_ms, certain, "; ".join(parts))


def _model_key(source: Bundle) -> str:
    parts = [source.files[name].sha256 for name in SOURCES.values() if name in source]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _names_of(source: Bundle | None, file: Path) -> frozenset[str]:
    """The folders' names, which people choose."""
    paths = [file, *([source.root] if source else [])]
    return frozenset(n for n in (file.stem, *(real_path(p).name for p in paths)) if len(n) > 3)


@contextmanager
def _collected_log() -> Iterator[list[str]]:
    """What the package logs, for the file instead of the terminal."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname.lower()}: {record.getMessage()}")

    package = logging.getLogger(__name__.split(".")[0])
    handlers, level = package.handlers, package.level
    package.handlers, package.propagate = [Collector()], False
    package.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        package.handlers, package.propagate = handlers, True
        package.setLevel(level)
