"""The demo's stages in their order, each done once: what was finished is kept in demo.json.

It calls the same functions as the other commands, on faces that nobody has.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.bundle import open_bundle
from ..bundle.manifest import Bundle
from ..calibration.calibrate import calibrate
from ..distill.networks import build_network
from ..distill.recipe import read_recipe
from ..distill.train import distill
from ..errors import MachineError
from ..export.export import export_onnx
from ..export.torch_network import module_embedder, torch_embedder
from ..faces.contract import InputSpec, preprocess
from ..faces.pairs import Pairs
from ..faces.sources import open_faces
from ..graph.run import Embed
from ..metrics.accuracy import pair_accuracy
from ..metrics.protocols import draw_pairs
from ..runtime.benchmark.benchmark import benchmark
from ..runtime.build import build_engine
from ..runtime.evaluation.embeddings_file import origin_of, write_embeddings
from ..runtime.evaluation.evaluate import evaluate
from ..runtime.evaluation.verify import verify
from ..runtime.report.report import write_report
from .demo_journal import Plan, Stage, keep, kept
from .output import Output

MIN_GAIN = 20.0
"""Points of accuracy that the student must gain over its untrained self."""
MAX_BEHIND = 5.0
"""Points of accuracy that it may stay behind its teacher."""


@dataclass(frozen=True)
class Gate:
    name: str
    text: str
    passed: bool


@dataclass(frozen=True)
class Demo:
    """What `run_demo` did."""

    stages: tuple[Stage, ...]
    gates: tuple[Gate, ...]
    bundle: Path
    report: Path

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "bundle": str(self.bundle),
            "report": str(self.report),
            "stages": [asdict(stage) for stage in self.stages],
            "gates": [asdict(gate) for gate in self.gates],
        }


Found = tuple[str, str, dict[str, Any]]
"""What came out, its figure, and the numbers that gates need."""


def run_demo(out: str | Path, output: Output, plan: Plan = Plan()) -> Demo:  # noqa: B008
    """Run what is not done yet of the demo in the folder `out`.

    Raises what the stages raise; `demo.json` keeps every stage that ended.
    """
    home = Path(out)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{home} cannot be made: {error.strerror}", "choose --out") from error
    teacher, student = home / "teacher.bundle", home / "student.bundle"
    judging = open_faces(plan.judging)
    judged = Pairs(judging, **vars(draw_pairs(judging.labels)))

    stages: Mapping[str, Callable[[], Found]] = {
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
        "evaluate int8": lambda: _evaluate(student, judged, output),
        "benchmark fp32": lambda: _benchmark(student, "fp32", output),
        "benchmark int8": lambda: _benchmark(student, "int8", output),
        "report": lambda: _report(student),
    }
    done_before = kept(home, plan)
    numbers: dict[str, Any] = {}
    done: list[Stage] = []
    for count, (name, work) in enumerate(stages.items(), 1):
        if name in done_before:
            stage, found = Stage(**done_before[name]["stage"]), done_before[name]["numbers"]
        else:
            output.note(f"[{count}/{len(stages)}] {name}")
            start = time.monotonic()
            made, figure, found = work()
            stage = Stage(name, made, figure, round(time.monotonic() - start, 1))
            done_before[name] = {"stage": asdict(stage), "numbers": found}
            keep(home, plan, done_before)
        done.append(stage)
        numbers.update(found)
    return Demo(tuple(done), _gates(numbers), student, student / "report.html")


def _gates(numbers: Mapping[str, Any]) -> tuple[Gate, ...]:
    untrained, teacher, student = (
        100 * numbers[name] for name in ("untrained", "teacher", "student")
    )
    gain, behind = student - untrained, teacher - student
    return (
        Gate(
            "student learned",
            f"{gain:.1f} points over untrained, at least {MIN_GAIN:g}",
            gain >= MIN_GAIN,
        ),
        Gate(
            "student follows its teacher",
            f"{abs(behind):.1f} points {'ahead' if behind < 0 else 'behind'},"
            f" at most {MAX_BEHIND:g} behind",
            behind <= MAX_BEHIND,
        ),
        *(
            Gate(
                f"{engine} engine is the PyTorch model",
                numbers[f"verify {engine}"]["text"],
                numbers[f"verify {engine}"]["passed"],
            )
            for engine in ("fp16", "int8")
        ),
    )


def _train(recipe: str, out: Path, teacher: Path | None, plan: Plan, output: Output) -> Found:
    started = (out / "checkpoint").is_dir()
    bundle = distill(
        read_recipe(recipe, plan.changes),
        open_faces(plan.training),
        out,
        teacher=teacher,
        resume=started,
        track=output.track,
        notify=output.note,
    )
    options = bundle.history[-1]["options"]
    network = options.get("recipe", options).get("network", "")
    return f"{out.name}/model.pt", f"{network}, {bundle.embedding_dim}-d", {}


def _accuracy(teacher: Path, student: Path, judged: Pairs, home: Path, output: Output) -> Found:
    import torch

    bundle = open_bundle(student)
    recipe = read_recipe("tiny")
    torch.manual_seed(recipe.seed)
    untrained = module_embedder(build_network(recipe.network, bundle.embedding_dim))
    found = {
        "untrained": _judge(untrained, bundle.spec, judged, output, "judging the untrained"),
        "teacher": _judge_bundle(open_bundle(teacher), judged, output, "judging the teacher"),
    }
    embeddings = _embed(torch_embedder(bundle), bundle.spec, judged, output, "judging the student")
    keys, labels = judged.faces.keys, judged.faces.labels
    origin = origin_of(bundle, "fp32", "torch")
    write_embeddings(home / "reference.npz", keys, labels, embeddings, origin)
    found["student"] = pair_accuracy(embeddings, judged).mean
    figure = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items())
    return "on people never trained on", figure, found


def _judge_bundle(bundle: Bundle, judged: Pairs, output: Output, label: str) -> float:
    return _judge(torch_embedder(bundle), bundle.spec, judged, output, label)


def _judge(embed: Embed, spec: InputSpec, judged: Pairs, output: Output, label: str) -> float:
    return pair_accuracy(_embed(embed, spec, judged, output, label), judged).mean


def _embed(embed: Embed, spec: InputSpec, judged: Pairs, output: Output, label: str) -> Any:
    size = 64
    steps = -(-len(judged.faces) // size)
    batches = output.track(judged.faces.batches(size), label, steps)
    return np.concatenate([embed(preprocess(batch, spec)) for batch in batches])


def _export(student: Path, output: Output) -> Found:
    summary = export_onnx(student, student, notify=output.note).history[-1]["summary"]
    return "model.onnx", f"cosine to PyTorch {summary['check']['min_cosine']:.6f}", {}


def _calibrate(student: Path, plan: Plan, output: Output) -> Found:
    done = calibrate(student, open_faces(plan.calibration), track=output.track)
    share = 100 * done.report.int8_mac_share
    return "model.int8.onnx", f"{share:.0f} % of multiply-adds in INT8", {}


def _engine(student: Path, precision: str, output: Output) -> Found:
    built = build_engine(student, precision, "onnxruntime", track=output.track)
    return built.engine, f"{built.describe_layers()} layers", {}


def _verify(student: Path, engine: str, judged: Pairs, home: Path, output: Output) -> Found:
    found = verify(
        student, engine, pairs=judged, reference=home / "reference.npz", track=output.track
    ).to_json()
    text = f"cosine mean {found['cosine']['mean']:.4f}, min {found['cosine']['min']:.4f}"
    return (
        f"reports/verify-{engine}.json",
        text,
        {f"verify {engine}": {"passed": found["passed"], "text": text}},
    )


def _evaluate(student: Path, judged: Pairs, output: Output) -> Found:
    found = evaluate(student, judged, engine="int8", track=output.track).to_json()
    return "reports/evaluate-int8.json", f"accuracy {100 * found['accuracy']:.1f} %", {}


def _benchmark(student: Path, engine: str, output: Output) -> Found:
    found = benchmark(student, engine, batches=(1,), duration_s=5.0, track=output.track).to_json()
    run = found["runs"][0]
    figure = f"p50 {run['latency_ms']['p50']:.2f} ms, {run['verdict']}"
    return f"reports/benchmark-{engine}.json", figure, {}


def _report(student: Path) -> Found:
    path = write_report(student)
    return f"{student.name}/{path.name}", f"{path.stat().st_size / 1000:.0f} kB, opens offline", {}
