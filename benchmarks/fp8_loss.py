"""What FP8 loses beside INT8, and what each step of calibration gives it, emulated on the CPU.

    python benchmarks/fp8_loss.py FACES BUNDLE... [--calibrate 96] [--judge 300]

FACES is a folder of aligned faces, a folder per person; calibration and judging use different people.
onnxruntime rounds every weight and activation as the format has it and adds in float32. No GPU is behind
these figures. The table is in docs/results/fp8.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.collect import collect_histograms, embed_model
from fr_edge.calibration.covariance import CovarianceCollector
from fr_edge.calibration.fitting import ALL_STEPS, RANGES_ONLY, CalibrationSteps, fit_table
from fr_edge.calibration.gptq import round_weights
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.calibration.subset import FaceStatistics, select_subset, usable_faces
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.layers import choose_int8_layers
from fr_edge.metrics.rates import compare_embeddings
from fr_edge.onnx_file import read_onnx

NO_SCALES = replace(ALL_STEPS, equalization=False)
VARIANTS: tuple[tuple[str, str, CalibrationSteps, float], ...] = (
    ("INT8, the default", "int8", ALL_STEPS, 1.0),
    ("FP8, ranges alone", "fp8", RANGES_ONLY, 1.0),
    ("and bias correction", "fp8", replace(RANGES_ONLY, bias_correction=True), 1.0),
    ("and GPTQ", "fp8", NO_SCALES, 1.0),
    ("and equalization: the default", "fp8", ALL_STEPS, 1.0),
    ("the default, ranges divided by 4", "fp8", ALL_STEPS, 0.25),
    ("the default, ranges times 32", "fp8", ALL_STEPS, 32.0),
)


def measure(root: Path, faces: Faces, calibrate: int, judge: int) -> None:
    """Print the table of one bundle's network."""
    bundle = open_bundle(root)
    model, spec = read_onnx(bundle.file("model.onnx")), bundle.spec
    choice = choose_int8_layers(model)
    subset = select_subset(faces, calibrate, judge, pairs=True)
    collector, stats = CovarianceCollector(model, choice.int8), FaceStatistics()
    images = usable_faces(faces, subset.calibration, stats)
    histograms = collect_histograms(model, choice.tensors, spec, images, collector)
    expected = embed_model(model, spec, faces, subset.held_out)
    labels = faces.labels[list(subset.held_out)]
    print(f"\n{root.stem}: {len(stats.used)} faces calibrate, {len(expected)} of others judge")
    print("| | cosine mean | p1 | min | TAR loss at 1e-3, likely |\n|---|---|---|---|---|")
    for name, precision, steps, factor in VARIANTS:
        table = fit_table(
            model, choice, histograms, "auto", steps,
            faces=len(stats.used), identities=1, model_sha256="", precision=precision,
        )  # fmt: skip
        table = replace(table, ranges={t: amax * factor for t, amax in table.ranges.items()})
        rounded = (
            round_weights(model, table, collector.moments, correct_biases=steps.bias_correction)
            if steps.gptq
            else {}
        )
        quantized = quantize_onnx(model, table, choice, rounded)
        loss = compare_embeddings(
            expected, embed_model(quantized, spec, faces, subset.held_out), labels, 1e-3
        )
        rate, cosine = loss.at(1e-3), loss.cosine
        likely = f"{rate.smoothed_drop:+.4f}" if rate else "-"
        print(
            f"| {name} | {cosine.mean:.5f} | {cosine.p1:.5f} | {cosine.min:.5f} | {likely} |",
            flush=True,
        )


def main() -> None:
    """Measure the bundles one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces")
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--calibrate", type=int, default=96)
    parser.add_argument("--judge", type=int, default=300)
    args = parser.parse_args()
    source = open_faces(args.faces)
    for root in args.bundles:
        measure(root, source, args.calibrate, args.judge)


if __name__ == "__main__":
    main()
