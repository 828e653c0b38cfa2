"""What TensorRT-RTX's compiler makes of bundles on a machine without a GPU: docs/results/engines.md.

    python benchmarks/rtx_engines.py FACES BUNDLE... [--precisions fp32,fp16,int8] [--limit 512]

Every bundle is copied, calibrated on FACES with the defaults, and compiled in each precision:
bytes of the engine, its layers with weights by precision from the engine's own table, reformats.
Compile-only: nothing runs, so nothing is said of speed. One line of JSON per engine.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from fr_edge.calibration.calibrate import calibrate
from fr_edge.faces.sources import open_faces
from fr_edge.runtime.build import build_engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces")
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--precisions", default="fp32,fp16,int8")
    parser.add_argument("--limit", type=int, default=512)
    asked = parser.parse_args()
    for bundle in asked.bundles:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / bundle.name
            shutil.copytree(bundle, copy)
            calibrate(copy, open_faces(asked.faces), limit=asked.limit)
            for precision in asked.precisions.split(","):
                start = time.process_time()
                built = build_engine(copy, precision, "tensorrt-rtx")
                record = json.loads((copy / f"{built.engine}.json").read_text())
                row = {
                    "bundle": bundle.name,
                    "precision": precision,
                    "bytes": built.size,
                    "layers": built.describe_layers(),
                    "reformats": record["reformats"],
                    "cpu_s": round(time.process_time() - start, 1),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
