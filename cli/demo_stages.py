"""The demo's stages in their order, on synthetic faces, by the functions that the commands call.

Finished stages are recorded in demo.json and not repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..arrays import F32
from ..bundle.bundle import open_bundle
from ..calibration.calibrate import calibrate
from ..distill.recipe import read_recipe
from ..distill.train import distill_student
from ..documents import convert, to_builtins
from ..export.export import export_onnx
from ..export.torch_network import TorchWeights, open_torch_weights, random_torch_weights
from ..faces.pairs import Pairs
from ..faces.sources import open_faces
from ..metrics.accuracy import pair_accuracy
from ..metrics.protocols import draw_pairs
from ..runtime.benchmark.benchmark import benchmark
from ..runtime.build import build_engine
from ..runtime.evaluation.embeddings_file import origin_of, write_embeddings
from ..runtime.evaluation.evaluate import evaluate
from ..runtime.evaluation.gates import Gate
from ..runtime.evaluation.verify import verify
from ..runtime.report.report import write_report
from ..runtime.session import Artifact, embed_faces
from .output import Output
from .stages import Done, Stage, Work, run_stages

T = TypeVar("T")


@dataclass(frozen=True)
class DemoPlan:
    """Faces of the demo: synthetic people, of other seeds for each purpose.

    Attributes:
        training: Source of the faces that train the teacher and the student.
        calibration: Source of the faces that calibrate INT8.
        judging: Source of the faces that the networks and engines are judged on.
        changes: Changes of both recipes, `key=value`, as `fr-edge distill --set` takes them.
    """

    training: str = "synthetic:120x16@1"
    calibration: str = "synthetic:64x4@2"
    judging: str = "synthetic:60x10@3"
    changes: tuple[str, ...] = ()


FULL = DemoPlan()
MIN_GAIN = 20.0  # points of accuracy that the student must gain over its untrained self
MAX_BEHIND = 5.0  # points of accuracy that the student may lose to its teacher
_TIMING_S = 5.0  # of each benchmark
_MAX_TAR_DROP = 0.01  # as counted: verify's default limit
_MAX_LIKELY_DROP = 0.03  # by the 95 % interval, which 60 synthetic people make wide


@dataclass(frozen=True)
class DemoGate:
    """A condition that the demo must meet.

    Attributes:
        name: Of the condition.
        text: The measured figure, and the limit.
        passed: Whether the condition is met.
    """

    name: str
    text: str
    passed: bool


@dataclass(frozen=True)
class _EngineGate:
    """What a verification records of its gate."""

    text: str
    passed: bool


@dataclass(frozen=True)
class DemoResult:
    """What the demo did, shaped like the JSON document of `fr-edge demo --json`.

    Attributes:
        passed: Whether every gate passed.
        bundle: The student's bundle.
        report: The page that shows it.
        stages: In their order.
        gates: What was judged at the end.
    """

    passed: bool
    bundle: Path
    report: Path
    stages: tuple[Stage, ...]
    gates: tuple[DemoGate, ...]


def run_demo(out: str | Path, output: Output, plan: DemoPlan | None = None) -> DemoResult:
    """Run the stages of the demo that are not finished yet.

    Args:
        out: The demo's folder; made if it is missing.
        output: Where progress and notes go.
        plan: Faces and changes of the recipes; `FULL` by default.

    Raises:
        FrEdgeError: What a stage raises. demo.json keeps every finished stage.
        OSError: The folder cannot be made.
    """
    home, plan = Path(out), plan or FULL
    home.mkdir(parents=True, exist_ok=True)
    recipes = [read_recipe(name) for name in ("tiny-teacher", "tiny")]
    settings = to_builtins({"recipes": recipes, "plan": plan})
    works = {name: Work(do, settings) for name, do in _works(home, plan, output).items()}
    stages = run_stages(home / "demo.json", works, output)
    gates = _gates({name: value for s in stages for name, value in s.numbers.items()})
    student = home / "student.bundle"
    return DemoResult(
        passed=all(gate.passed for gate in gates),
        bundle=student,
        report=student / "report.html",
        stages=stages,
        gates=gates,
    )


def _works(home: Path, plan: DemoPlan, output: Output) -> Mapping[str, Callable[[], Done]]:
    """The stages by name, in their order."""
    teacher, student = home / "teacher.bundle", home / "student.bundle"
    judging = open_faces(plan.judging)
    judged = Pairs(judging, **vars(draw_pairs(judging.labels)))
    return {
        "teacher": lambda: _train("tiny-teacher", teacher, None, plan, output),
        "student": lambda: _train("tiny", student, teacher, plan, output),
        "accuracy": lambda: _accuracy(teacher, student, judged, home, output),
        "export": lambda: _export(student, output),
        "calibrate": lambda: _calibrate(student, plan, output),
        "engine fp32": lambda: _engine(student, "fp32", output),
        "engine fp16": lambda: _engine(student, "fp16", output),
        "engine int8": lambda: _engine(student, "int8", output),
        "verify fp16": lambda: _verify(student, "fp16", judged, home, output),
        "verify int8": lambda: _verify(student, "int8", judged, home, output),
        "verify int8 graph": lambda: _verify(student, "int8", judged, home, output, "graph"),
        "evaluate int8": lambda: _evaluate(student, judged, output),
        "benchmark fp32": lambda: _benchmark(student, "fp32", output),
        "benchmark int8": lambda: _benchmark(student, "int8", output),
        "report": lambda: _report(student),
    }


def _gates(numbers: Mapping[str, Any]) -> tuple[DemoGate, ...]:
    untrained, teacher, student = (
        100 * _recorded(numbers, name, float) for name in ("untrained", "teacher", "student")
    )
    gain, behind = student - untrained, teacher - student
    return (
        DemoGate(
            "student learned",
            f"{gain:.1f} points over untrained, at least {MIN_GAIN:g}",
            gain >= MIN_GAIN,
        ),
        DemoGate(
            "student follows its teacher",
            f"{abs(behind):.1f} points {'ahead' if behind < 0 else 'behind'},"
            f" at most {MAX_BEHIND:g} behind",
            behind <= MAX_BEHIND,
        ),
        *(
            DemoGate(f"{name} matches PyTorch", **asdict(_recorded(numbers, name, _EngineGate)))
            for name in ("fp16 engine", "int8 engine", "int8 graph")
        ),
    )


def _recorded(numbers: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """What a stage has recorded under a name; demo.json may have been changed since."""
    return convert(numbers.get(name), kind, f"demo.json: {name}")


def _train(recipe: str, out: Path, teacher: Path | None, plan: DemoPlan, output: Output) -> Done:
    result = distill_student(
        read_recipe(recipe, plan.changes),
        open_faces(plan.training),
        out,
        teacher=teacher,
        track=output.track,
    )
    network = result.report.recipe.network
    return f"{out.name}/model.pt", f"{network}, {result.bundle.embedding_dim}-d", {}


def _accuracy(teacher: Path, student: Path, judged: Pairs, home: Path, output: Output) -> Done:
    def embed(weights: TorchWeights, name: str) -> F32:
        return embed_faces(weights, judged.faces, output.track, f"embedding with the {name}")

    bundle, recipe = open_bundle(student), read_recipe("tiny")
    embeddings = {
        "untrained": embed(
            random_torch_weights(recipe.network, bundle.embedding_dim, bundle.spec, recipe.seed),
            "untrained student",
        ),
        "teacher": embed(open_torch_weights(open_bundle(teacher)), "teacher"),
        "student": embed(open_torch_weights(bundle), "student"),
    }
    write_embeddings(
        home / "reference.npz",
        judged.faces.keys,
        judged.faces.labels,
        embeddings["student"],
        origin_of(bundle, "fp32", "torch"),
    )
    numbers = {name: pair_accuracy(array, judged).mean for name, array in embeddings.items()}
    figure = ", ".join(f"{name} {100 * value:.1f} %" for name, value in numbers.items())
    return "on people never trained on", figure, numbers


def _export(student: Path, output: Output) -> Done:
    check = export_onnx(student, student).summary.check
    return "model.onnx", f"cosine to PyTorch {check.min_cosine:.6f}", {}


def _calibrate(student: Path, plan: DemoPlan, output: Output) -> Done:
    done = calibrate(student, open_faces(plan.calibration), track=output.track)
    share = 100 * done.report.int8_mac_share
    return "model.int8.onnx", f"{share:.0f} % of multiply-adds in INT8", {}


def _engine(student: Path, precision: str, output: Output) -> Done:
    built = build_engine(student, precision, "onnxruntime", track=output.track)
    return built.engine, f"{built.describe_layers()} layers", {}


def _verify(
    student: Path,
    engine: str,
    judged: Pairs,
    home: Path,
    output: Output,
    artifact: Artifact = "engine",
) -> Done:
    """The graph has every INT8 rounding, where a CPU's engine computes INT8 layers in float."""
    result = verify(
        student,
        engine,
        pairs=judged,
        reference=home / "reference.npz",
        max_tar_drop=_MAX_LIKELY_DROP,
        artifact=artifact,
        track=output.track,
    )
    figure = f"cosine mean {result.cosine.mean:.4f}, min {result.cosine.min:.4f}"
    reasons = [f"{reason.verdict}: {reason.reason}" for reason in result.reasons]
    reasons += _counted_drops(result.gates)
    gate = {"passed": not reasons and result.passed, "text": "; ".join([figure, *reasons])}
    return result.report, figure, {f"{engine} {artifact}": gate}


def _counted_drops(gates: Sequence[Gate]) -> list[str]:
    """What is wrong with the drop of TAR as counted; the interval is verify's own gate."""
    drops = [gate.value for gate in gates if gate.name.startswith("TAR drop at FAR")]
    if all(drop is None for drop in drops):
        return ["CANNOT JUDGE: no drop of TAR was measured"]
    return [
        f"FAILED: TAR drop {drop}, at most {_MAX_TAR_DROP}"
        for drop in drops
        if drop is not None and drop > _MAX_TAR_DROP
    ]


def _evaluate(student: Path, judged: Pairs, output: Output) -> Done:
    result = evaluate(student, judged, engine="int8", track=output.track)
    return result.report, f"accuracy {100 * result.accuracy:.1f} %", {}


def _benchmark(student: Path, engine: str, output: Output) -> Done:
    result = benchmark(student, engine, batches=(1,), duration_s=_TIMING_S, track=output.track)
    run = result.runs[0]
    return result.report, f"p50 {run.latency_ms['p50']:.2f} ms, {run.verdict}", {}


def _report(student: Path) -> Done:
    path = write_report(student)
    return f"{student.name}/{path.name}", f"{path.stat().st_size / 1000:.0f} kB, opens offline", {}
