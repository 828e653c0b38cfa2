"""A model repository for a Triton server: configurations, models, and what calls them in turn.

A plan of TensorRT is taken where the bundle has one, else the ONNX model. Batches are put together up to
the size from which a larger one pays no more, as `fr-edge benchmark` has measured it.
"""

from pathlib import Path
from string import Template

from onnx import ModelProto

from ...documents import read_json
from ...errors import BundleError
from ...faces.stored_detector import DetectorSpec
from ...graph.load import fixed_batch
from ...onnx_file import read_onnx
from ...reading import read_file
from ..benchmark.result import BenchmarkResult
from ..evaluation.stored_reports import read_reports
from .package_draft import TEMPLATES, PackageDraft, detector_lines, plans_of

_MAX_BATCH = 32  # faces; what engines are built for by default
_WARM_SIDE = 320  # pixels a side of the canvas that warms a detector of any size up
_FAMILIES = ("YuNet", "SCRFD")  # that model.py decodes


def write_triton(draft: PackageDraft) -> None:
    """Fill a package with a model repository, `models`.

    Args:
        draft: The package.

    Raises:
        BundleError: The network takes a fixed number of faces, or its contract cannot be expressed.
    """
    if fixed_batch(draft.model) is not None:
        raise BundleError(
            "the network takes a fixed number of faces a run; a Triton server puts any number together",
            "package it for python or cpp",
        )
    dim, knee = draft.bundle.embedding_dim, _knee(draft)
    largest = _serve(draft, "embedder", "crop") or _MAX_BATCH
    batching = ""
    if knee is None:
        draft.left_out["models/embedder: preferred_batch_size"] = (
            "where a larger batch pays no more is not measured: run"
            f" `fr-edge benchmark {draft.bundle.root} --engine {draft.precision}`"
        )
    else:
        size, delay_us = min(knee[0], largest), knee[1]
        batching = f"preferred_batch_size: [ {size} ] max_queue_delay_microseconds: {delay_us}"
    _configure(
        draft,
        "embedder",
        "crop",
        max_batch=largest,
        side=draft.bundle.spec.crop_side,
        dim=dim,
        batching=batching,
        warm_batch=min(knee[0], largest) if knee else largest,
    )
    _serve(draft, "frame_embedder", "frame")
    _configure(draft, "frame_embedder", "frame", dim=dim)
    draft.add_golden("crop", "frame")
    spec = draft.add_detector(_FAMILIES)
    if spec is not None:
        _add_detection(draft, spec)


def _serve(draft: PackageDraft, model: str, kind: str) -> int | None:
    """Put what a model runs into its folder; the largest batch of its plans, None for ONNX."""
    folder = f"models/{model}/1"
    plans = plans_of(draft.bundle, draft.precision, kind)  # type: ignore[arg-type]
    if not plans:
        draft.add_model(kind, f"{folder}/model.onnx")  # type: ignore[arg-type]
        return None
    (draft.root / folder).mkdir(parents=True)
    batches = []
    for name in plans:
        target = draft.root / folder / Path(name).name
        target.write_bytes(read_file(draft.bundle.file(name), "ENGINE_MB"))
        facts = read_json(draft.bundle.file(f"{name}.json"), dict[str, object])
        batch = facts.get("batch")
        if isinstance(batch, list) and len(batch) == 3 and isinstance(batch[2], int):
            batches.append(batch[2])
    draft.not_run[model] = "plans of TensorRT run on the GPU that they were built for"
    return min(batches, default=1)


def _configure(draft: PackageDraft, model: str, kind: str, **values: object) -> None:
    """Write a model's config.pbtxt."""
    folder = draft.root / "models" / model
    plans = sorted(path.name for path in (folder / "1").glob("*.plan"))
    files = []
    if plans:
        files.append(f'default_model_filename: "{plans[0]}"')
        for name in plans_of(draft.bundle, draft.precision, kind):  # type: ignore[arg-type]
            facts = read_json(draft.bundle.file(f"{name}.json"), dict[str, object])
            if capability := facts.get("compute_capability"):
                entry = f'{{ key: "{capability}" value: "{Path(name).name}" }}'
                files.append(f"cc_model_filenames {entry}")
    text = Template((TEMPLATES / "rendered" / f"{model}.pbtxt").read_text(encoding="ascii"))
    settings = {
        "platform": "tensorrt_plan" if plans else "onnxruntime_onnx",
        "device": "KIND_GPU" if plans else "KIND_CPU",
        "files": "\n".join(files),
        **values,
    }
    config = text.substitute({key: str(value) for key, value in settings.items()}).rstrip()
    (folder / "config.pbtxt").write_text(config + "\n", encoding="ascii")


def _add_detection(draft: PackageDraft, spec: DetectorSpec) -> None:
    """The detector, and the model that calls it and the embedder."""
    root, dim = draft.root, draft.bundle.embedding_dim
    folder = root / "models" / "detector" / "1"
    folder.mkdir(parents=True)
    (root / "detector.onnx").rename(folder / "model.onnx")
    model = read_onnx(folder / "model.onnx")
    size = ("-1", "-1") if spec.any_size else (str(spec.height), str(spec.width))
    side = (_WARM_SIDE, _WARM_SIDE) if spec.any_size else (spec.height, spec.width)
    outputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {_dims(model, name)} ] }}'
        for name in spec.outputs
    )
    _configure(
        draft,
        "detector",
        "detector",
        height=size[0],
        width=size[1],
        outputs=outputs,
        warm_height=side[0],
        warm_width=side[1],
    )
    calls = root / "models" / "recognise" / "1"
    calls.mkdir(parents=True)
    (calls / "model.py").write_bytes((TEMPLATES / "bls" / "model.py").read_bytes())
    lines = [*detector_lines(spec), f"outputs {' '.join(spec.outputs)}", f"dim {dim}"]
    (calls / "detector.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "detector.txt").unlink()
    _configure(draft, "recognise", "frame", dim=dim)


def _dims(model: ModelProto, name: str) -> str:
    """The shape of an output, -1 for what is free."""
    value = next(value for value in model.graph.output if value.name == name)
    axes = value.type.tensor_type.shape.dim
    return ", ".join(str(axis.dim_value or -1) for axis in axes)


def _knee(draft: PackageDraft) -> tuple[int, int] | None:
    """The batch from which a larger one pays no more, and how long one takes, in microseconds."""
    for stored in read_reports(draft.bundle):
        report = stored.report
        if not isinstance(report, BenchmarkResult) or report.engine != draft.precision:
            continue
        if stored.stale or report.verdict != "VALID" or report.saturation_batch is None:
            continue
        runs = [run for run in report.runs if run.batch == report.saturation_batch]
        p50 = runs[0].latency_ms.get("p50") if runs else None
        return report.saturation_batch, round(1000 * (p50 or 1.0))
    return None
