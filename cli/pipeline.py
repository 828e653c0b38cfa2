"""From photographs and a network to verified engines: the stages of `fr-edge run`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..bundle.bundle import open_bundle
from ..bundle.manifest import Bundle
from ..calibration.calibrate import calibrate
from ..documents import convert, encode_json, to_builtins
from ..errors import BundleError, GateFailed, ModelError
from ..export.detector_export import export_detector
from ..export.export import export_onnx
from ..faces.align import align_folder
from ..faces.contract import ALIGNED_SIZE, InputSpec, make_spec
from ..faces.detect import open_detector
from ..faces.sources import Faces, open_faces
from ..faces.split import split_people
from ..files import sha256, write_atomic
from ..graph.load import image_size
from ..metrics.rates import RateChange
from ..onnx_file import read_onnx
from ..runtime.benchmark.benchmark import benchmark
from ..runtime.build import build_engine
from ..runtime.evaluation.gates import PASSED
from ..runtime.evaluation.result import VerifyResult
from ..runtime.evaluation.verify import verify
from ..runtime.fingerprint import PRECISIONS, SOURCES, find_engine
from ..runtime.machine.backends import pick_backend
from ..runtime.machine.device import cores
from ..runtime.report.report import write_report
from ..runtime.report.tradeoff import EngineFigures, surpassing
from .output import Output
from .run_plan import RunPlan, encode_plan
from .stages import PROBLEM, Done, Stage, Work, run_stages

NOT_BUILT = "NOT BUILT"


@dataclass(frozen=True)
class EngineRow:
    """One engine in the table of results.

    Attributes:
        precision: "fp32", "fp16", "fp8" or "int8".
        verdict: Of `verify`, or "NOT BUILT".
        reason: Why it is not PASSED.
        size: Bytes of the engine.
        int8_share: Share of the multiply-adds that calibration put into INT8; 0 in other engines.
        p50_ms: Median latency of one run, milliseconds.
        timing: "VALID" or "INVALID".
        far: The false accept rate by name at which TAR was judged.
        tar: True accept rate, a fraction; None where it could not be measured.
        tar_change: Against the original, with its 95 % interval.
        best: Whether the engine is placed, and no other that is placed is as small, as fast and as
            accurate, and better in one of them: as in the report.
        not_placed: Why it is not compared with the others: not PASSED, its timing INVALID, no TAR.
    """

    precision: str
    verdict: str
    reason: str = ""
    size: int | None = None
    int8_share: float = 0.0
    p50_ms: float | None = None
    timing: str = ""
    far: str = ""
    tar: float | None = None
    tar_change: float | None = None
    tar_interval_95: tuple[float, float] | None = None
    best: bool = False
    not_placed: str = ""


@dataclass(frozen=True)
class RunResult:
    """What `fr-edge run` did.

    Attributes:
        passed: Whether every engine PASSED.
        bundle: The bundle with the engines.
        report: Its page.
        stages: In their order.
        engines: In the order in which they were built.
    """

    passed: bool
    bundle: Path
    report: Path
    stages: tuple[Stage, ...]
    engines: tuple[EngineRow, ...]


def run_pipeline(plan: RunPlan, out: Path, output: Output) -> RunResult:
    """Run the stages that are not finished.

    Args:
        plan: What to do.
        out: Folder to work in; made if it is missing.
        output: Where progress and notes go.

    Raises:
        FrEdgeError: What a stage raises; OUT/run.json keeps every finished stage.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "run.toml", encode_plan(plan))
    bundle, people = out / "model.bundle", _People(plan, out)
    prepare = {
        "align": Work(
            lambda: _align(plan, out, output),
            (_listing(plan.photos), _listing(plan.detector), plan.faces, *_odd_side(plan)),
        ),
        "split": Work(
            people.describe, (plan.calibration_share, plan.seed, _listing(plan.photos)), ("align",)
        ),
        "export": Work(
            lambda: _export(plan, bundle, people), (_listing(plan.model), plan.preset), ("split",)
        ),
        "detector": Work(
            lambda: _export_detector(plan, bundle), _listing(plan.detector), ("export",)
        ),
    }
    if not plan.detector:
        prepare.pop("align")
        prepare.pop("detector")
        prepare["split"] = Work(people.describe, prepare["split"].settings)
    journal = out / "run.json"
    run_stages(journal, prepare, output, replace=True)
    names = plan.precisions or _available(open_bundle(bundle, check="manifest"))
    works = {**prepare, **_engine_works(plan, bundle, people, names, output)}
    stages = run_stages(journal, works, output, replace=True)
    rows = _rows(names, {stage.stage: stage for stage in stages})
    return RunResult(
        all(row.verdict == PASSED for row in rows),
        bundle,
        bundle / "report.html",
        stages,
        rows,
    )


class _People:
    """Faces to calibrate and to judge on, indexed when they are first needed."""

    def __init__(self, plan: RunPlan, out: Path) -> None:
        self._plan, self._source = plan, str(out / "faces") if plan.detector else plan.photos
        self._parts: tuple[Faces, Faces] | None = None

    @property
    def parts(self) -> tuple[Faces, Faces]:
        if self._parts is None:
            faces = open_faces(self._source)
            self._parts = split_people(faces, self._plan.calibration_share, self._plan.seed)
        return self._parts

    def describe(self) -> Done:
        first, second = self.parts
        text = (
            f"{len(first)} faces of {first.identities} people calibrate, {len(second)} of"
            f" {second.identities} judge"
        )
        return Path(self._source).name, text, {}


def _engine_works(
    plan: RunPlan, bundle: Path, people: _People, names: tuple[str, ...], output: Output
) -> dict[str, Work]:
    """Calibration, then build, verify and time each engine, then the page."""
    works: dict[str, Work] = {}
    policy = Path(plan.policy) if plan.policy else None
    limits = sha256(policy) if policy else ""
    for name in names:
        before: tuple[str, ...] = ("export",)
        if name in ("int8", "fp8"):
            works[f"calibrate {name}"] = Work(
                partial(_calibrate, bundle, people, name, output), None, ("export",)
            )
            before = (f"calibrate {name}",)
        works[f"engine {name}"] = Work(
            partial(_build, plan, bundle, name, output), plan.backend, before
        )
        works[f"verify {name}"] = Work(
            partial(_verify, plan, bundle, people, name, policy, output),
            limits,
            (f"engine {name}",),
        )
        works[f"benchmark {name}"] = Work(
            partial(_benchmark, plan, bundle, name, output),
            (plan.batch, plan.duration_s, limits),
            (f"engine {name}",),
        )
    works["report"] = Work(lambda: _report(bundle), None, tuple(works))
    return works


def _align(plan: RunPlan, out: Path, output: Output) -> Done:
    detector = open_detector(plan.detector)
    report = align_folder(
        plan.photos,
        out / "faces",
        detector,
        output.track,
        faces=plan.faces,
        workers=cores(),
        size=_contract(plan).crop_side,
    )
    text = (
        f"{len(report.written)} photographs; {len(report.none)} show no face, {len(report.several)}"
        f" several, {len(report.unreadable)} are unreadable"
    )
    return "faces", text, {}


def _contract(plan: RunPlan) -> InputSpec:
    """The preset's contract at the size of the network's own input; without a preset only the size
    is meant."""
    spec, model = make_spec(plan.preset or None), Path(plan.model)
    if model.is_dir():
        own = open_bundle(model, check="manifest").spec
        return replace(spec, height=own.height, width=own.width)
    if model.suffix.lower() == ".onnx" and model.is_file():
        height, width = image_size(read_onnx(model))
        return replace(spec, height=height or spec.height, width=width or spec.width)
    return spec


def _odd_side(plan: RunPlan) -> tuple[int, ...]:
    """The crops' size where it is not the usual one: journals of other runs have none."""
    side = _contract(plan).crop_side
    return () if side == ALIGNED_SIZE else (side,)


def _export(plan: RunPlan, bundle: Path, people: _People) -> Done:
    spec = _contract(plan) if plan.preset else None
    result = export_onnx(plan.model, bundle, spec=spec, faces=people.parts[0])
    check = result.summary.check
    text = f"{result.bundle.spec.describe()}; cosine to the original {check.min_cosine:.6f}"
    return "model.onnx", text, {}


def _export_detector(plan: RunPlan, bundle: Path) -> Done:
    """With it the bundle takes photographs; one that has no form of its own is no reason to end."""
    try:
        result = export_detector(plan.detector, bundle)
    except ModelError as error:
        return "", f"not kept in the bundle: {error.message}", {}
    return result.file, f"{result.detector.family}, so the bundle takes photographs", {}


def _calibrate(bundle: Path, people: _People, precision: str, output: Output) -> Done:
    done = calibrate(bundle, people.parts[0], track=output.track, precision=precision)
    share = done.report.int8_mac_share
    text = f"{100 * share:.0f} % of multiply-adds in {precision.upper()}"
    return SOURCES[precision], text, {"share": share}


def _build(plan: RunPlan, bundle: Path, precision: str, output: Output) -> Done:
    """An engine that this network or machine does not allow is a row of the table, not the end."""
    try:
        built = build_engine(bundle, precision, plan.backend, track=output.track)
    except (GateFailed, ModelError, BundleError) as error:
        return "", f"{NOT_BUILT}: {error.message}", {PROBLEM: error.message}
    return built.engine, f"{built.describe_layers()} layers", {"size": built.size}


def _verify(
    plan: RunPlan,
    bundle: Path,
    people: _People,
    precision: str,
    policy: Path | None,
    output: Output,
) -> Done:
    backend = pick_backend(plan.backend)
    if not _is_built(bundle, precision, backend):
        return "", NOT_BUILT, {}
    result = verify(
        bundle,
        precision,
        backend=backend,
        faces=people.parts[1],
        policy=policy,
        track=output.track,
    )
    far, rate = _judged_rate(result)
    numbers = {
        "verdict": result.verdict,
        "reason": "; ".join(reason.reason for reason in result.reasons),
        "far": far,
        "tar": rate.engine if rate else None,
        "tar_change": rate.delta if rate else None,
        "tar_interval_95": rate.interval_95.delta if rate and rate.interval_95 else None,
    }
    return result.report, result.verdict, to_builtins(numbers)


def _judged_rate(result: VerifyResult) -> tuple[str, RateChange | None]:
    """The strictest rate that the pairs resolve."""
    resolved = [
        (far, rate)
        for far, rate in result.tar.items()
        if rate.engine is not None and not rate.low_confidence
    ]
    return min(resolved, key=lambda item: item[1].far, default=("", None))


def _benchmark(plan: RunPlan, bundle: Path, precision: str, output: Output) -> Done:
    backend = pick_backend(plan.backend)
    if not _is_built(bundle, precision, backend):
        return "", NOT_BUILT, {}
    result = benchmark(
        bundle,
        precision,
        backend,
        batches=(plan.batch,),
        duration_s=plan.duration_s,
        policy=Path(plan.policy) if plan.policy else None,
        track=output.track,
    )
    run = result.runs[0]
    numbers = {"p50_ms": run.latency_ms["p50"], "timing": run.verdict}
    return result.report, f"p50 {run.latency_ms['p50']:.2f} ms, {run.verdict}", numbers


def _report(bundle: Path) -> Done:
    path = write_report(bundle)
    return path.name, f"{path.stat().st_size / 1000:.0f} kB, opens offline", {}


def _is_built(bundle: Path, precision: str, backend: str) -> bool:
    return find_engine(open_bundle(bundle, check="manifest"), backend, precision) is not None


def _available(bundle: Bundle) -> tuple[str, ...]:
    """fp8 is left to whoever asks for it: most boards have none, and a CPU emulates it."""
    return tuple(
        name for name in PRECISIONS if name == "int8" or (name != "fp8" and SOURCES[name] in bundle)
    )


def _rows(names: tuple[str, ...], stages: Mapping[str, Stage]) -> tuple[EngineRow, ...]:
    rows = []
    for name in names:
        parts = [stages[f"{stage} {name}"].numbers for stage in ("engine", "verify", "benchmark")]
        values = {key: value for part in parts for key, value in part.items()}
        problem = values.pop(PROBLEM, "")
        if calibrated := stages.get(f"calibrate {name}"):
            values["int8_share"] = calibrated.numbers.get("share")
        values = {"verdict": NOT_BUILT, "reason": problem, **values, "precision": name}
        rows.append(convert(values, EngineRow, "what the finished stages have recorded"))
    return tuple(_with_best(rows))


def _with_best(rows: Sequence[EngineRow]) -> Iterator[EngineRow]:
    """The engines, those on the Pareto front of size, latency and accuracy marked as in the report."""
    figures = [
        EngineFigures(
            row.precision,
            row.precision,
            "",
            (row.size or 0) / 1e6,
            row.p50_ms,
            row.timing == "VALID",
            row.verdict,
            row.tar,
        )
        for row in rows
    ]
    costs = [engine.costs for engine in figures]
    for at, row in enumerate(rows):
        best = bool(costs[at]) and not surpassing(costs, at)
        yield replace(row, best=best, not_placed=figures[at].not_placed)


def _listing(source: str) -> str:
    """What tells whether a source has changed: names, sizes and times of its files."""
    path = Path(source)
    if not path.exists():
        return source
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    rows = []
    for file in files:
        stat = file.stat()
        rows.append((str(file.relative_to(path.parent)), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(encode_json(rows, indent=0)).hexdigest()
