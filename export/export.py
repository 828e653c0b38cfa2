"""`export_onnx`: any face network becomes `model.onnx` in a bundle, with its contract and proof.

The stages of the work are the other files' here; this one knows their order and what the bundle
gets.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ..arrays import F32
from ..bundle.bundle import Transaction, open_bundle, transaction
from ..bundle.manifest import Bundle
from ..errors import ModelError
from ..faces.contract import InputSpec, preprocess
from ..faces.sources import Faces
from ..files import sha256
from ..graph.layers import macs, parameters
from ..graph.run import onnx_embedder
from ..graph.trained_ranges import write_trained_ranges
from .batchnorm import fold_batchnorm
from .canonicalize import finish, normal_form
from .fp16 import Fp16Model, fp16_model
from .golden import golden_faces, write_golden
from .parity import Parity, check_parity, first_difference, probe_inputs, reference_embeddings
from .simplify import simplify
from .source import ExportSource, SourceOptions, open_source

Notify = Callable[[str], None]


@dataclass(frozen=True)
class _Standard:
    """The network in fr-edge's form: what was done to it, and how far it is from the original."""

    model: ModelProto
    simplified: str
    folded: dict[str, int]
    agreement: Parity


def export_onnx(
    source: str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    spec: InputSpec | None = None,
    golden: str | Path | None = None,
    faces: Faces | None = None,
    notify: Notify = lambda _: None,
) -> Bundle:
    """Export a bundle's weights, a checkpoint (`arch`) or somebody's ONNX file into a bundle.

    `out` may be the source bundle; what its former model left there is dropped. `spec` is the
    input contract of a checkpoint or ONNX file; a bundle and an ONNX file of fr-edge bring their
    own; where nobody says it, it is found from `faces` of known identity. `golden` is a source of
    faces to keep in the bundle instead of drawn ones.

    Raises UsageError when the call does not fit the source, ModelError when the network cannot be
    used or the result is not the original, MachineError when torch is missing for weights.
    """
    options = {
        "source": Path(source).name,
        "arch": arch,
        "spec": spec.to_json() if spec else None,
        "golden": Path(golden).name if golden else None,
        "faces": faces.where if faces else None,
    }
    told = SourceOptions(arch, spec, faces, notify)
    with transaction(out, "export", {k: v for k, v in options.items() if v is not None}) as draft:
        _export(open_source(Path(source), Path(out), told), draft, golden, notify)
    return open_bundle(out, check="manifest")


def _export(
    origin: ExportSource, draft: Transaction, golden: str | Path | None, notify: Notify
) -> None:
    inputs = probe_inputs(origin.spec)
    expected = reference_embeddings(origin.embed, inputs)
    lengths = np.linalg.norm(expected, axis=1)
    spec = replace(origin.spec, l2_normalised=bool(np.abs(lengths - 1).max() < 1e-3))
    standard = _standard(origin, spec, inputs, expected, notify)
    model = standard.model
    half = fp16_model(model, inputs, expected, notify)
    faces = golden_faces(golden, notify)

    draft.spec, draft.embedding_dim = spec, expected.shape[1]
    draft.path("model.onnx", "model").write_bytes(model.SerializeToString())
    write_golden(draft.path("golden.npz", "golden"), faces, preprocess(faces, spec), origin)
    if half:
        path = draft.path("model.fp16.onnx", "FP16 model")
        path.write_bytes(half.model.SerializeToString())
    if origin.save_weights:
        origin.save_weights(draft.path("model.pt", "weights"))
    elif origin.kind == "onnx" and origin.file.resolve() != (draft.root / "model.onnx").resolve():
        draft.remove("model.pt")
    draft.summary = {
        "source": {"kind": origin.kind, "sha256": sha256(origin.file)},
        "nodes": {"before": len(origin.model.graph.node), "after": len(model.graph.node)},
        "simplified": standard.simplified,
        "folded": standard.folded,
        "norms_left": sum(node.op_type == "BatchNormalization" for node in model.graph.node),
        "check": asdict(standard.agreement),
        "fp16": _half_summary(half) if half else None,
        "parameters": parameters(model),
        "macs": macs(model),
    }


def _standard(
    origin: ExportSource, spec: InputSpec, inputs: F32, expected: F32, notify: Notify
) -> _Standard:
    """Every step that changes the graph, and the proof that none changed the function."""
    given = origin.model
    normal = normal_form(given, spec)
    simple, how = simplify(normal, notify)
    try:
        return _folded(simple, how, origin.ranges, spec, inputs, expected)
    except ModelError as error:
        for before, after in ((given, normal), (normal, simple)):
            if where := first_difference(before, after, inputs[:1]):
                break
        else:
            raise
        if before is given:
            raise ModelError(f"{error.message}; it differs from {where} on", error.hint) from error
        notify(f"onnxsim changes what the network computes at {where}: its work is left out")
        return _folded(normal, f"onnxsim changed {where}", origin.ranges, spec, inputs, expected)


def _folded(
    model: ModelProto,
    how: str,
    ranges: tuple[float, ...],
    spec: InputSpec,
    inputs: F32,
    expected: F32,
) -> _Standard:
    # A range that was trained is of what the layer reads now.
    final, folded = fold_batchnorm(model, into_readers=not ranges)
    final = finish(final, spec)
    if ranges:
        write_trained_ranges(final, ranges)
    try:
        agreement = check_parity(onnx_embedder(final.SerializeToString()), inputs, expected)
    except ModelError as error:
        where = first_difference(model, final, inputs[:1])
        said = f"; folding changes {where}" if where else ""
        raise ModelError(error.message + said, error.hint) from error
    return _Standard(final, how, folded, agreement)


def _half_summary(half: Fp16Model) -> dict[str, Any]:
    return {
        "check": asdict(half.agreement),
        "kept_float": list(half.kept_float),
        "denormal_weights": half.denormal_weights,
        "peak_activation": half.peak,
    }
