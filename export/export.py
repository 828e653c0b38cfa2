"""`export_onnx`: any face network becomes `model.onnx` in a bundle, with its input contract, checked.

This file holds the order of the work and what the bundle gets; the work is in the others.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from ..arrays import F32
from ..bundle.bundle import Transaction, open_bundle, transaction
from ..bundle.golden import golden_faces, write_golden
from ..bundle.manifest import Bundle
from ..documents import to_builtins
from ..errors import ModelError
from ..faces.contract import InputSpec, preprocess
from ..faces.sources import Faces, portable_name
from ..files import real_path, sha256
from ..graph.layers import layers, total_macs
from ..graph.load import fixed_batch
from ..graph.run import onnx_embedder
from ..graph.trained_ranges import write_trained_ranges
from .batchnorm import fold_batchnorm
from .canonicalize import finish, normal_form
from .contract_check import ContractCheck, check_contract
from .fp16 import Fp16Result, make_fp16_model
from .parity import Parity, check_parity, first_difference, probe_inputs, reference_embeddings
from .simplify import simplify
from .source import ExportSource, SourceOptions, open_source

logger = logging.getLogger(__name__)

_USUAL_DIMS = (16, 4096)  # of published face embeddings: 128 to 512 mostly, VGG-Face's have 4,096


@dataclass(frozen=True)
class SourceFile:
    """The file that was exported: `kind` is "pytorch" or "onnx"."""

    kind: str
    sha256: str


@dataclass(frozen=True)
class NodeCounts:
    """Nodes of the graph before and after export."""

    before: int
    after: int


@dataclass(frozen=True)
class ExportSummary:
    """What export did to a network, as the bundle's history keeps it.

    Attributes:
        source: The exported file.
        nodes: Nodes before and after.
        simplified: "onnxsim", or why its result was not taken.
        folded: Kind of fold (for example `Conv+BatchNormalization`) -> how often.
        norms_left: BatchNormalizations that no layer could take.
        check: How far `model.onnx` is from the original.
        contract: How the input contract was checked.
        fp16: How FP16 suits the network; None when there is no FP16 model.
        batch: Faces per run, 1 where the batch cannot be freed; None for any number.
        parameters: Weights in `model.onnx`.
        macs: Multiply-accumulates for one face.
    """

    source: SourceFile
    nodes: NodeCounts
    simplified: str
    folded: Mapping[str, int]
    norms_left: int
    check: Parity
    contract: ContractCheck
    fp16: Fp16Result | None
    batch: int | None
    parameters: int
    macs: int


@dataclass(frozen=True)
class ExportResult:
    """What `export_onnx` gives back.

    Attributes:
        bundle: The bundle, its files not hashed.
        summary: What was done.
    """

    bundle: Bundle
    summary: ExportSummary


@dataclass(frozen=True)
class _Standard:
    """The network in fr-edge's form: what was done to it, and how far it is from the original."""

    model: ModelProto
    simplified: str
    folded: dict[str, int]
    parity: Parity
    batch: int | None


def export_onnx(
    source: str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    spec: InputSpec | None = None,
    golden: str | Path | None = None,
    faces: Faces | None = None,
    weights: str | None = None,
    output: str | None = None,
    constants: Mapping[str, F32] | None = None,
    force: bool = False,
) -> ExportResult:
    """Export a bundle's weights, a checkpoint or an ONNX file into a bundle.

    Args:
        source: A bundle, a PyTorch checkpoint, safetensors, TorchScript, torch.export or ONNX file.
        out: The bundle to write; may be the source bundle. What it holds of a former model is
            removed.
        arch: The network's name, for a checkpoint that does not name it; or `FILE.py:FUNCTION`,
            whose code is run and gives the network.
        spec: The input contract of a checkpoint or ONNX file. Bundles and ONNX files of fr-edge
            have their own.
        golden: A source of faces to keep in the bundle; None draws them.
        faces: Faces of known identity, on which a declared contract is checked and one that is not
            declared is found.
        weights: A part of the name of the weights that are meant, for a checkpoint with several
            sets, such as "ema".
        output: Name (of PyTorch networks: number or key) of the output that is the embedding, where
            there are several.
        constants: Input -> its numbers, for inputs of an ONNX file besides the image.
        force: Export although the contract looks wrong; a warning is logged.

    Returns:
        The bundle and what was done.

    Raises:
        UsageError: The arguments do not fit the source.
        ModelError: The network cannot be used, its input contract is wrong, or the result does not
            compute what it does.
        MachineError: torch is missing for weights, or onnx-ir for anything.
    """
    options = {
        "source": portable_name(str(source)),
        "arch": arch and _portable_arch(arch),
        "spec": spec.to_json() if spec else None,
        "golden": portable_name(str(golden)) if golden else None,
        "faces": portable_name(faces.where) if faces else None,
        "weights": weights,
        "output": output,
        "constants": sorted(constants) if constants else None,
        "force": force or None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    with transaction(out, "export", given) as change:
        opened = open_source(
            Path(source),
            Path(out),
            SourceOptions(arch, spec, faces, weights, output, constants or {}),
        )
        contract = _check_contract(opened, faces, force)
        summary = _export(opened, contract, change, golden)
        change.summary = to_builtins(summary)
    return ExportResult(open_bundle(out, check="manifest"), summary)


def _portable_arch(arch: str) -> str:
    """The name of a network, or of the code that builds it without the folders above it."""
    where, colon, function = arch.rpartition(":")
    return f"{Path(where).name}{colon}{function}"


def _check_contract(source: ExportSource, faces: Faces | None, force: bool) -> ContractCheck:
    """The check of a declared contract; one that was found on faces is right for them."""
    if source.search is None:
        return check_contract(source.model, source.embed, source.spec, faces, force=force)
    return ContractCheck(
        (), portable_name(faces.where) if faces else None, source.search.verdict, True
    )


def _export(
    source: ExportSource,
    contract: ContractCheck,
    change: Transaction,
    golden: str | Path | None,
) -> ExportSummary:
    inputs = probe_inputs(source.spec)
    expected = reference_embeddings(source.embed, inputs)
    lengths = np.linalg.norm(expected, axis=1)
    spec = replace(source.spec, l2_normalised=bool(np.abs(lengths - 1).max() < 1e-3))
    standard = _standardize(source, spec, inputs, expected)
    model = standard.model
    half = make_fp16_model(model, inputs, expected)
    faces = golden_faces(golden)

    _check_dim(expected.shape[1])
    change.spec, change.embedding_dim = spec, expected.shape[1]
    change.path("model.onnx", "model").write_bytes(model.SerializeToString())
    golden_inputs = preprocess(faces, spec)
    exact = source.exact(golden_inputs) if source.exact else None
    path = change.path("golden.npz", "golden")
    drawn = golden is None or str(golden).startswith("synthetic:")
    path.touch(0o666 if drawn else 0o600)  # somebody's faces are for this user alone
    write_golden(path, faces, source.embed(golden_inputs), source.kind, exact)
    if half:
        path = change.path("model.fp16.onnx", "FP16 model")
        path.write_bytes(half.model.SerializeToString())
    if source.save_weights:
        source.save_weights(change.path("model.pt", "weights"))
    elif source.kind == "onnx" and real_path(source.file) != real_path(change.root / "model.onnx"):
        change.remove("model.pt")
    table = layers(model)
    return ExportSummary(
        source=SourceFile(source.kind, sha256(source.file)),
        nodes=NodeCounts(len(source.model.graph.node), len(model.graph.node)),
        simplified=standard.simplified,
        folded=standard.folded,
        norms_left=sum(node.op_type == "BatchNormalization" for node in model.graph.node),
        check=standard.parity,
        contract=contract,
        fp16=half.result if half else None,
        batch=standard.batch,
        parameters=sum(layer.parameters for layer in table),
        macs=total_macs(table),
    )


def _check_dim(dim: int) -> None:
    """Say what an output that is hardly an embedding may be."""
    least, most = _USUAL_DIMS
    if least <= dim <= most:
        return
    likely = (
        "an attribute such as age or pose, or landmarks"
        if dim < least
        else "scores of training people or a feature map"
    )
    logger.warning(
        "the output has %s numbers a face, and embeddings %d to %s: is it %s?"
        " --output names another output of the network",
        *(f"{dim:,}", least, f"{most:,}", likely),
    )


def _standardize(source: ExportSource, spec: InputSpec, inputs: F32, expected: F32) -> _Standard:
    """The network in fr-edge's form; one face at a time where its batch cannot be freed."""
    try:
        return _reform(source, spec, inputs, expected, one_face=False)
    except ModelError as error:
        try:
            standard = _reform(source, spec, inputs, expected, one_face=True)
        except ModelError:
            raise error from None
        logger.warning(
            "the network's batch cannot be freed (%s): the bundle takes one face at a time",
            error.message,
        )
        return standard


def _reform(
    source: ExportSource, spec: InputSpec, inputs: F32, expected: F32, *, one_face: bool
) -> _Standard:
    """Every step that changes the graph, and the check that none changed the function."""
    given = source.model
    normal = normal_form(given, spec, one_face=one_face)
    simple, simplified = simplify(normal)
    try:
        return _fold(simple, simplified, source.ranges, spec, inputs, expected)
    except ModelError as error:
        for before, after in ((given, normal), (normal, simple)):
            if where := first_difference(before, after, inputs[:1]):
                break
        else:
            raise
        if before is given:
            raise ModelError(f"{error.message}; it differs from {where} on", error.hint) from error
        logger.warning(
            "onnxsim changes what the network computes at %s: its work is left out", where
        )
        return _fold(normal, f"onnxsim changed {where}", source.ranges, spec, inputs, expected)


def _fold(
    model: ModelProto,
    simplified: str,
    ranges: tuple[float, ...],
    spec: InputSpec,
    inputs: F32,
    expected: F32,
) -> _Standard:
    # A range that was trained holds for what the layer reads now.
    folded, counts = fold_batchnorm(model, into_readers=not ranges)
    final = finish(folded, spec)
    if ranges:
        write_trained_ranges(final, ranges)
    try:
        parity = check_parity(onnx_embedder(final.SerializeToString()), inputs, expected)
    except ModelError as error:
        where = first_difference(model, final, inputs[:1])
        place = f"; folding changes {where}" if where else ""
        raise ModelError(error.message + place, error.hint) from error
    return _Standard(final, simplified, counts, parity, fixed_batch(final))
