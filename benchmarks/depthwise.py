"""Does depthwise pay in INT8? Compile evidence of TensorRT-RTX, and counted work.

    python benchmarks/depthwise.py BUNDLE... [--compute 7.5,8.6,8.9,12.0]

Each network is written with its depthwise convolutions in float (the default) and in INT8, with ranges
of noise, which change no kernel. TensorRT-RTX compiles both without a GPU: nothing has run there. The
table is in docs/results/engines.md.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from fr_edge.bundle.bundle import open_bundle
from fr_edge.bundle.manifest import Bundle
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.calibration.table import CalibrationTable
from fr_edge.graph.layers import Int8Choice, Layer, choose_int8_layers, layers, weighted_layers
from fr_edge.graph.run import peaks
from fr_edge.onnx_file import read_onnx
from fr_edge.runtime.trt.bundle_plan import compile_variant
from fr_edge.runtime.trt.config import EngineOptions
from fr_edge.runtime.trt.layers import prove_layers, reformats

KINDS = ("float", "int8")


def with_depthwise(model: ModelProto, kind: str) -> Int8Choice:
    """The default choice, or one with the grouped convolutions too."""
    choice = choose_int8_layers(model)
    if kind == "float":
        return choice
    table = weighted_layers(model)
    tensors = tuple(dict.fromkeys(layer.data for layer in table))
    return replace(
        choice, int8=tuple(layer.name for layer in table), float_layers={}, tensors=tensors
    )


def quantized(bundle: Bundle, model: ModelProto, kind: str) -> ModelProto:
    """The Q/DQ model, with the peaks of noise as ranges."""
    noise = np.random.default_rng(0).uniform(-1, 1, (2, *bundle.spec.shape)).astype(np.float32)
    choice, found = with_depthwise(model, kind), peaks(model, noise)
    ranges = {name: max(found.get(name, 1.0), 1e-6) for name in choice.tensors}
    return quantize_onnx(model, CalibrationTable("minmax", 2, 1, "", ranges), choice)


def size_of(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) if shape else 0


def counted(model: ModelProto) -> dict[str, float]:
    """Depthwise layers' multiply-adds as share of all, and the bytes that they move by kind."""
    table = layers(model)
    shapes = {layer.name: layer.shape for layer in table}
    makers = {node.output[0]: node.name for node in model.graph.node}
    grouped = [layer for layer in table if layer.weight and layer.groups > 1]

    def numbers(layer: Layer) -> tuple[int, int]:
        return size_of(shapes.get(makers.get(layer.data, ""), ())), size_of(layer.shape)

    pairs = [numbers(layer) for layer in grouped]
    read, written = sum(r for r, _ in pairs), sum(w for _, w in pairs)
    return {
        "layers": len(grouped),
        "macs": sum(x.macs for x in grouped) / max(1, sum(x.macs for x in table)),
        # Each number is written by the kernel before and read by the next one. In the engine's table a
        # float depthwise layer reads and writes FP16, an INT8 one reads INT8 and writes FP32.
        "float_mb": (2 * 2 * read + 2 * 2 * written) / 1e6,
        "int8_mb": (2 * 1 * read + 2 * 4 * written) / 1e6,
    }


def compile_evidence(bundle: Bundle, model: ModelProto, compute: str) -> None:
    """One row for each kind."""
    names = {x.name for x in weighted_layers(model) if x.groups > 1}
    for kind in KINDS:
        network = quantized(bundle, model, kind)
        options = EngineOptions(compute=(compute,))
        try:
            built = compile_variant(bundle, network, "tensorrt-rtx", options, b"")
        except Exception as error:  # whatever NVIDIA's compiler says is the result
            print(
                f"| {bundle.root.stem} | {compute} | {kind} | {str(error)[:90]} | | | |", flush=True
            )
            continue
        proofs = [p for p in prove_layers(network, built.layers) if p.layer in names]
        types = Counter(
            f"{row.inputs[0]} x {row.weights[0]} -> {row.outputs[0]}"
            for row in built.layers
            if names & set(row.nodes) and row.kind != "kgen" and row.inputs and row.weights
        )
        made = ", ".join(f"{n} {name}" for name, n in types.items())
        made = made or ", ".join(f"{n} {p}" for p, n in Counter(p.built for p in proofs).items())
        kernels = Counter(row.kind for row in built.layers)
        print(
            f"| {bundle.root.stem} | {compute} | {kind} | {made} | {len(built.plan):,} |"
            f" {sum(kernels.values())} ({kernels['kgen']} generated) | {reformats(built.layers)} |",
            flush=True,
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--compute", default="7.5,8.0,8.6,8.9,12.0")
    args = parser.parse_args()
    opened = [(b, read_onnx(b.file("model.onnx"))) for b in map(open_bundle, args.bundles)]
    print("| network | depthwise layers | of all multiply-adds | MB around them, float | INT8 |")
    print("|---|---|---|---|---|")
    for bundle, model in opened:
        c = counted(model)
        print(
            f"| {bundle.root.stem} | {c['layers']} | {c['macs']:.1%} | {c['float_mb']:.2f} |"
            f" {c['int8_mb']:.2f} |"
        )
    print("\n| network | SM | depthwise | computes in | bytes | engine layers | reformats |")
    print("|---|---|---|---|---|---|---|")
    for bundle, model in opened:
        for compute in args.compute.split(","):
            compile_evidence(bundle, model, compute)


if __name__ == "__main__":
    main()
