"""`export_onnx`: any face network becomes `model.onnx` in a bundle, with its contract and proof.

The stages of the work are the other files' here; this one knows their order and what the bundle
gets.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import EncodeError
from onnx import ModelProto

from ..bundle import Bundle, Draft, change, open_bundle, sha256
from ..errors import ModelError, UsageError
from ..faces.contract import PRESETS, InputSpec, preprocess
from .check import compare, probe_inputs, reference_embeddings
from .cost import macs, parameters
from .fold import fold_norms
from .foreign import contract_in, face_input, read_onnx
from .golden import golden_faces, write_golden
from .half import Half, half_flavour
from .linear import to_gemm
from .normal import finish, normal_form
from .reference import Embed, module_embedder, onnx_embedder
from .simplify import simplify
from .tidy import tidy

STALE = ("calibration.json", "model.int8", "model.fp16.onnx", "engines/", "reports/", "report.html")
"""What an earlier model left in the bundle (prefixes)."""

Notify = Callable[[str], None]


@dataclass(frozen=True)
class _Origin:
    """What is exported: the network as ONNX, and the original as a function."""

    kind: str
    file: Path
    model: ModelProto
    embed: Embed
    spec: InputSpec
    save_weights: Callable[[Path], None] | None = None


def export_onnx(
    source: str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    spec: InputSpec | None = None,
    golden: str | Path | None = None,
    notify: Notify = lambda _: None,
) -> Bundle:
    """Export a bundle's weights, a checkpoint (`arch`) or somebody's ONNX file into a bundle.

    `out` may be the source bundle; what its former model left there is dropped. `spec` is the
    input contract of a checkpoint or ONNX file; a bundle and an ONNX file of fr-edge bring their
    own. `golden` is a source of faces to keep in the bundle instead of drawn ones.

    Raises UsageError when the call does not fit the source, ModelError when the network cannot be
    used or the result is not the original, MachineError when torch is missing for weights.
    """
    options = {
        "source": Path(source).name,
        "arch": arch,
        "spec": spec.to_json() if spec else None,
        "golden": Path(golden).name if golden else None,
    }
    with change(out, "export", {k: v for k, v in options.items() if v is not None}) as draft:
        _export(_open(Path(source), Path(out), arch, spec), draft, golden, notify)
    return open_bundle(out, check=False)


def _export(origin: _Origin, draft: Draft, golden: str | Path | None, notify: Notify) -> None:
    inputs = probe_inputs(origin.spec)
    expected = reference_embeddings(origin.embed, inputs)
    lengths = np.linalg.norm(expected, axis=1)
    spec = replace(origin.spec, l2_normalised=bool(np.abs(lengths - 1).max() < 1e-3))
    model, how = simplify(normal_form(origin.model, spec), notify)
    to_gemm(model)
    folded = fold_norms(model.graph)
    model = finish(model, spec)
    data = model.SerializeToString()
    agreement = compare(onnx_embedder(data), inputs, expected)
    half = half_flavour(model, inputs, expected, notify)
    faces = golden_faces(golden, notify)
    embeddings = origin.embed(preprocess(faces, spec))

    draft.drop(*STALE)
    draft.spec, draft.embedding_dim = spec, expected.shape[1]
    draft.path("model.onnx", "model").write_bytes(data)
    write_golden(draft.path("golden.npz", "golden"), faces, embeddings, origin.kind)
    if half:
        path = draft.path("model.fp16.onnx", "model-fp16")
        path.write_bytes(half.model.SerializeToString())
    if origin.save_weights:
        origin.save_weights(draft.path("model.pt", "weights"))
    elif origin.kind == "onnx" and origin.file.resolve() != (draft.root / "model.onnx").resolve():
        draft.drop("model.pt")  # another network's
    draft.summary = {
        "source": {"kind": origin.kind, "sha256": sha256(origin.file)},
        "nodes": {"before": len(origin.model.graph.node), "after": len(model.graph.node)},
        "simplified": how,
        "folded": folded,
        "check": asdict(agreement),
        "fp16": _half_summary(half) if half else None,
        "parameters": parameters(model),
        "macs": macs(model),
    }


def _open(source: Path, out: Path, arch: str | None, spec: InputSpec | None) -> _Origin:
    if source.is_dir():
        return _from_bundle(source, out, arch, spec)
    if not source.exists():
        raise ModelError(
            f"there is no model at {source}", "give a bundle, a checkpoint or an ONNX file"
        )
    if _is_checkpoint(source):
        return _from_checkpoint(source, arch, spec)
    if arch is not None:
        raise UsageError(f"--arch {arch} is for PyTorch weights; {source} is none")
    return _from_onnx(source, spec)


def _is_checkpoint(path: Path) -> bool:
    if path.suffix.lower() in (".pt", ".pth", ".ckpt"):
        return True
    if path.suffix.lower() == ".onnx":
        return False
    with path.open("rb") as stream:
        return stream.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # torch.save: new, old


def _from_bundle(source: Path, out: Path, arch: str | None, spec: InputSpec | None) -> _Origin:
    bundle = open_bundle(source)
    if arch is not None:
        raise UsageError(f"{source} names its own network", "leave --arch out")
    _agree(source, bundle.spec, spec)
    if "model.pt" not in bundle and "model.onnx" in bundle:  # it came from somebody's ONNX
        return _from_onnx(bundle.file("model.onnx"), bundle.spec)
    copies = source.resolve() != out.resolve()
    return _weights(bundle.file("model.pt"), None, bundle.spec, keep=copies)


def _from_checkpoint(path: Path, arch: str | None, spec: InputSpec | None) -> _Origin:
    if spec is None:
        raise _no_contract(path)
    return _weights(path, arch, spec, keep=True)


def _weights(path: Path, arch: str | None, spec: InputSpec, *, keep: bool) -> _Origin:
    from .torch_source import load_network, network_to_onnx, save_network

    network, name, dim = load_network(path, arch)
    model = network_to_onnx(network, name, spec)
    save = (lambda to: save_network(to, network, name, dim)) if keep else None
    return _Origin("pytorch", path, model, module_embedder(network), spec, save)


def _from_onnx(path: Path, spec: InputSpec | None) -> _Origin:
    model = tidy(read_onnx(path))
    face = face_input(model)
    own = contract_in(model)
    _agree(path, own, spec)
    spec = own or spec
    if spec is None:
        raise _no_contract(path)
    height, width = face.height or spec.height, face.width or spec.width
    if (height, width) != (spec.height, spec.width):
        raise UsageError(
            f"the network takes {height}x{width}, the contract says {spec.height}x{spec.width}",
            f"add --size {height}x{width}",
        )
    try:
        embed = onnx_embedder(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{path} is larger than 2 GB: {error}") from error
    return _Origin("onnx", path, model, embed, spec)


def _agree(path: Path, own: InputSpec | None, told: InputSpec | None) -> None:
    """A contract is written once; whether the output has unit length is measured, not told."""
    if own and told and replace(told, l2_normalised=own.l2_normalised) != own:
        raise UsageError(
            f"{path} has its own input contract: {own.describe()}",
            "leave --preset, --mean, --std, --channels and --size out",
        )


def _no_contract(path: Path) -> UsageError:
    return UsageError(
        f"{path} does not say how a face becomes its input (channel order, mean, std)",
        f"add --preset NAME, one of {', '.join(PRESETS)}, or --mean and --std; never guess: ask"
        " whoever trained it",
    )


def _half_summary(half: Half) -> dict[str, Any]:
    return {
        "check": asdict(half.agreement),
        "kept_float": list(half.kept_float),
        "denormal_weights": half.denormal_weights,
        "peak_activation": half.peak,
    }
