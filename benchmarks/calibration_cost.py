"""INT8 by this tool and by its peers: time, memory, and what the result loses.

    python benchmarks/calibration_cost.py BUNDLE FACES [--counts 128,256] [--judged 1000]
        [--sides ours,calibrate,onnxruntime,modelopt] [--modelopt-python PATH]
        [--method entropy|max] [--json]

Every side is a process of its own, from the start of its imports to a written INT8 model, one after
the other, on the same faces:

    ours         reading the faces, statistics, ranges, Q/DQ model: what the peers do too
    calibrate    the whole command: looks at the faces first, judges the model, changes the bundle
    onnxruntime  quantize_static by --method, symmetric, per-channel weights
    modelopt     modelopt.onnx.quantization by --method, on the CPU; the faces come as one array

The operating system counts CPU seconds and peak memory. Seconds mean little elsewhere, ratios do.
Models are judged, outside of any clock, on faces of people who did not calibrate. `ranges` sets the
peers' ranges beside those that the same method finds here without any further step: theirs over
ours, least, median and largest over the tensors that both quantize.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.collect import collect_histograms, embed_model
from fr_edge.calibration.subset import select_subset
from fr_edge.calibration.trt_cache import activation_tensors, plain_ranges
from fr_edge.faces.contract import preprocess
from fr_edge.faces.sources import open_faces
from fr_edge.metrics.rates import compare_embeddings

OURS = """
import onnx
from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.fitting import fit_table
from fr_edge.calibration.collect import collect_histograms
from fr_edge.calibration.qdq import quantize_onnx
from fr_edge.faces.sources import open_faces
from fr_edge.graph.layers import choose_int8_layers
spec, model = open_bundle(bundle).spec, onnx.load(bundle + "/model.onnx")
choice = choose_int8_layers(model)
source = open_faces(faces)
images = (source.read(index) for index in picks)
histograms = collect_histograms(model, choice.tensors, spec, images)
table = fit_table(model, choice, histograms, faces=len(picks), identities=0, model_sha256="")
onnx.save(quantize_onnx(model, table, choice), out)
"""
CALIBRATE = """
import shutil
from fr_edge.calibration.calibrate import calibrate
from fr_edge.faces.sources import open_faces
calibrate(bundle, open_faces(faces), limit=len(picks))
shutil.copy(bundle + "/model.int8.onnx", out)
"""
ONNXRUNTIME = """
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization import quantize_static
from fr_edge.bundle.bundle import open_bundle
from fr_edge.faces.contract import preprocess
from fr_edge.faces.sources import open_faces
spec, source = open_bundle(bundle).spec, open_faces(faces)

class Reader(CalibrationDataReader):
    def __init__(self):
        self.batches = source.batches(1, picks)
    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"face": preprocess(batch, spec)}

quantize_static(
    bundle + "/model.onnx", out, Reader(), 
    calibrate_method={"entropy": CalibrationMethod.Entropy, "max": CalibrationMethod.MinMax}[method],
    activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, per_channel=True,
    extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
)
"""
MODELOPT = """
import numpy as np
from modelopt.onnx.quantization import quantize
quantize(
    bundle + "/model.onnx", quantize_mode="int8", calibration_data={"face": np.load(pixels)},
    calibration_method=method, calibration_eps=["cpu"], high_precision_dtype="fp32",
    output_path=out,
)
"""
FRAME = r"""
import json, re, resource, sys, time
bundle, faces, picks, pixels, out, method = json.loads(sys.argv[1])
start = time.perf_counter()
{}
wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that begins at the size of the process this one was forked from.
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
print("\n", wall, used.ru_utime + used.ru_stime, peak / 1024)
"""
SIDES = {"ours": OURS, "calibrate": CALIBRATE, "onnxruntime": ONNXRUNTIME, "modelopt": MODELOPT}


def measure(python: str, body: str, given: list[Any]) -> dict[str, float]:
    command = [python, "-c", FRAME.format(body), json.dumps(given)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return {}
    wall_s, cpu_s, peak_mb = map(float, done.stdout.split()[-3:])
    return {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "peak_mb": round(peak_mb)}


def scales(model: onnx.ModelProto) -> dict[str, float]:
    """Tensor -> amax of the activations that a Q/DQ model quantizes."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n.input for n in model.graph.node if n.op_type == "QuantizeLinear"]
    return {
        tensor: 127.0 * float(constants[scale])
        for tensor, scale, *_ in pairs
        if tensor not in constants and constants[scale].size == 1
    }


def run(args: argparse.Namespace, count: int, folder: Path) -> dict[str, Any]:
    bundle, faces = open_bundle(args.bundle), open_faces(args.faces)
    chosen = select_subset(faces, count, args.judged)
    pixels = folder / "pixels.npy"
    if "modelopt" in args.sides:
        np.save(pixels, preprocess(next(faces.batches(count, chosen.calibration)), bundle.spec))
    model = onnx.load(bundle.file("model.onnx"))
    images = (faces.read(index) for index in chosen.calibration)
    histograms = collect_histograms(model, activation_tensors(model), bundle.spec, images)
    own = plain_ranges(histograms, {"max": "minmax"}.get(args.method, args.method))
    plain = embed_model(model, bundle.spec, faces, chosen.held_out) if chosen.held_out else None
    found: dict[str, Any] = {"faces": len(chosen.calibration), "judged": len(chosen.held_out)}
    for side in args.sides:
        copy, out = folder / side, folder / f"{side}.onnx"
        shutil.copytree(args.bundle, copy)
        python = args.modelopt_python if side == "modelopt" else sys.executable
        given = [str(copy), args.faces, chosen.calibration, str(pixels), str(out), args.method]
        found[side] = measure(python, SIDES[side], given)
        if found[side] and plain is not None:
            int8 = embed_model(onnx.load(out), bundle.spec, faces, chosen.held_out)
            loss = compare_embeddings(plain, int8, faces.labels[list(chosen.held_out)])
            rates = {f"{rate.far:g}": round(rate.drop, 4) for rate in loss.rates}
            found[side] |= {"cosine": asdict(loss.cosine), "tar_loss": rates}
        if found[side] and side in ("onnxruntime", "modelopt"):
            both = {k: v / own[k] for k, v in scales(onnx.load(out)).items() if own.get(k)}
            spread = np.percentile(list(both.values()), [0, 50, 100]).round(3).tolist()
            found[side] |= {"ranges": {"tensors": len(both), "least_median_most": spread}}
        print(f"{count:>6} {side:>12}  {json.dumps(found[side])}", file=sys.stderr, flush=True)
    for peer in set(args.sides) - {"ours"}:
        found[f"{peer}_to_ours"] = {
            key: round(found[peer][key] / found["ours"][key], 1)
            for key in ("wall_s", "cpu_s", "peak_mb")
            if key in found[peer] and key in found.get("ours", {})
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("faces")
    parser.add_argument("--counts", default="128,256")
    parser.add_argument("--judged", type=int, default=1000)
    parser.add_argument("--sides", default="ours,calibrate,onnxruntime")
    parser.add_argument("--modelopt-python", default=sys.executable)
    parser.add_argument("--method", default="entropy", choices=("entropy", "max"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.sides = args.sides.split(",")
    results = []
    for count in map(int, args.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(args, count, Path(folder)))
    if args.json:
        print(json.dumps(results))
        return
    for result in results:
        for name in [name for name in result if name.endswith("_to_ours")]:
            print(f"{result['faces']:>6} faces, {name}: {json.dumps(result[name])}")


if __name__ == "__main__":
    main()
