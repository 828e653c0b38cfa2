"""Time and memory of calibration, ours beside onnxruntime's entropy calibrator.

    python benchmarks/calibration_cost.py BUNDLE FACES [COUNT ...]

Each run is a process of its own, one after the other, on one thread; the operating system counts
its memory. Seconds mean little elsewhere, ratios do. Ours includes choosing the faces and writing
and judging the INT8 model; theirs is the calibrator alone.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = """
from fr_edge.calibration.calibrate import calibrate
from fr_edge.faces.sources import open_faces
calibrate(bundle, open_faces(faces), limit=count)
"""
THEIRS = """
import numpy as np
from fr_edge.bundle import open_bundle
from fr_edge.faces.contract import preprocess
from fr_edge.faces.sources import open_faces, spread
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
spec, source = open_bundle(bundle).spec, open_faces(faces)

class Reader(CalibrationDataReader):
    def __init__(self):
        self.batches = source.batches(1, spread(source, count))
    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"face": preprocess(batch, spec)}

calibrator = create_calibrator(
    bundle + "/model.onnx",
    augmented_model_path=bundle + "/augmented.onnx",
    calibrate_method=CalibrationMethod.Entropy,
)
calibrator.set_execution_providers(["CPUExecutionProvider"])
calibrator.collect_data(Reader())
calibrator.compute_data()
"""
FRAME = """
import resource, sys, time
bundle, faces, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = time.perf_counter()
{}
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def measure(body: str, bundle: Path, faces: str, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle, copy)
        command = [sys.executable, "-c", FRAME.format(body), str(copy), faces, str(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"failed": done.returncode}
    wall_s, cpu_s, peak_mb = map(float, done.stdout.split()[-3:])
    return {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "peak_mb": round(peak_mb)}


def main() -> None:
    bundle, faces, *counts = sys.argv[1:]
    for count in map(int, counts or ["128"]):
        found = {
            name: measure(body, Path(bundle), faces, count)
            for name, body in (("fr_edge", OURS), ("onnxruntime_entropy", THEIRS))
        }
        ours, theirs = found["fr_edge"], found["onnxruntime_entropy"]
        ratios = {
            f"{key}_ratio": round(theirs[key] / ours[key], 1)
            for key in ours
            if key in theirs and key != "failed"
        }
        print(json.dumps({"faces": count, **found, **ratios}), flush=True)


if __name__ == "__main__":
    main()
