"""A thousand boards' evidence merged: seconds, memory, and whether the odd boards are named.

The evidence is synthetic: one real verification and benchmark of a sample network on this CPU, given
to boards of four kinds with other names, figures and one acceptance of realistic size each. Among
them are one with another engine, one with another model, a throttled one, one in another power mode,
a slow one, and one whose files are damaged.

    python benchmarks/fleet_report.py [BOARDS]
"""

import copy
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fr_edge.documents import to_builtins
from fr_edge.runtime.benchmark.benchmark import benchmark
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.evaluation.verify import verify
from fr_edge.runtime.machine.doctor import examine_system
from fr_edge.runtime.selftest import make_sample_bundle

KINDS = {  # board -> L4T, TensorRT, p50 ms, power mode
    "NVIDIA Jetson Orin Nano": ("# R36 (release), REVISION: 4.3", "10.3.0", 1.9, "15W"),
    "NVIDIA Jetson AGX Orin": ("# R36 (release), REVISION: 4.3", "10.3.0", 0.6, "MAXN"),
    "NVIDIA Jetson Thor": ("# R38 (release), REVISION: 2.0", "10.13.3.9", 0.3, "MAXN"),
    "NVIDIA L4": ("", "10.13.3.9", 0.4, ""),
}
LAYERS = 120  # of an engine's table in an acceptance
ODD = {
    "board-0003": "other embeddings",
    "board-0007": "another model",
    "board-0011": "throttled",
    "board-0016": "power mode",
    "board-0019": "p50",
    "board-0023": "unreadable",
}

Document = dict[str, Any]


def templates(folder: Path) -> dict[str, Document]:
    """One real document of each kind."""
    root = folder / "sample.bundle"
    make_sample_bundle(root)
    build_engine(root, "int8", "onnxruntime")
    timed = benchmark(root, "int8", "onnxruntime", duration_s=1.0, warmup_s=0.2)
    return {
        "verify": to_builtins(verify(root, "int8", backend="onnxruntime")),
        "benchmark": to_builtins(timed),
        "doctor": to_builtins(examine_system()),
    }


def board(number: int, real: dict[str, Document], draw: random.Random) -> dict[str, Document]:
    name, kind = f"board-{number:04}", list(KINDS)[number % len(KINDS)]
    l4t, tensorrt, p50, mode = KINDS[kind]
    odd = ODD.get(name, "")
    verified, timed, system = (copy.deepcopy(real[k]) for k in ("verify", "benchmark", "doctor"))
    device = {**system["device"], "jetson": kind if l4t else "", "gpu": [kind]}
    device["packages"] = {**device["packages"], "tensorrt": tensorrt}
    system |= {"device": device, "l4t": l4t, "power_mode": mode, "cuda_driver": "12.6"}
    for report in (verified, timed):
        report |= {"backend": "tensorrt", "device": device}
    distance = draw.uniform(0.9, 1.1) * 0.008 * (6 if odd == "other embeddings" else 1)
    verified["golden"]["engine"]["min"] = timed["golden_min_cosine"] = 1 - distance
    if odd == "another model":
        verified["provenance"]["files"]["model.int8.onnx"] = "0" * 64
    run = timed["runs"][0]
    p50 *= draw.uniform(0.98, 1.02) * (1.6 if odd in ("throttled", "p50") else 1)
    run["latency_ms"] |= {"p50": p50, "p99": p50 * draw.uniform(1.1, 1.3)}
    run |= {"verdict": "VALID", "reasons": []}
    run["board"] |= {
        "throttled": ["thermal"] if odd == "throttled" else [],
        "power_mode": ["7W" if odd == "power mode" else mode] if mode else [],
        "temperature_c": {"gpu": [41.0, 58.0 + draw.uniform(0, 9)]},
    }
    table = [
        {"Name": f"conv_{i} + bn_{i}", "LayerType": "CaskConvolution", "Inputs": [{"Name": f"t{i}", "Dimensions": [1, 64, 56, 56], "Format/Datatype": "Int8"}], "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32", "Metadata": ""}
        for i in range(LAYERS)
    ]  # fmt: skip
    engines = [
        {"bundle": "yours", "precision": p, "verdict": "PASSED", "cosine": {"min": 1 - distance}, "benchmark": {"runs": [run]}, "inspector": {"Layers": table}}
        for p in ("int8", "fp16", "fp32")
    ]  # fmt: skip
    acceptance = {"verdict": "PASSED", "rehearsal": False, "backend": "tensorrt", "acceptance": 1}
    acceptance |= {"machine": {"system": system, "libraries": {"tensorrt": tensorrt}}}
    acceptance |= {"engines": [{**e, "problems": []} for e in engines], "machine_key": {}}
    return {
        "accept": acceptance,
        "verify-int8": verified,
        "benchmark-int8": timed,
        "doctor": system,
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), random.Random(0)
        real, evidence = templates(folder), folder / "evidence"
        for number in range(count):
            where = evidence / f"board-{number:04}"
            where.mkdir(parents=True)
            for kind, document in board(number, real, draw).items():
                (where / f"{kind}.json").write_text(json.dumps(document))
            if ODD.get(where.name) == "unreadable":
                (where / "verify-int8.json").write_text("{" * 100)
        size = sum(path.stat().st_size for path in evidence.rglob("*.json"))
        start = time.monotonic()
        line = [sys.executable, "-m", "fr_edge", "fleet", "report", str(evidence), "-q", "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(done.stdout)
        page = (evidence / "fleet.html").stat().st_size
    print(f"{count} boards, {size / 1e6:.0f} MB of evidence, exit code {done.returncode}")
    print(
        f"{seconds:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of CPU, {usage.ru_maxrss / 1024:.0f} MB"
    )
    print(f"page {page / 1e6:.2f} MB; {report['counts']}")
    named = {
        b["board"]: [*b["outliers"], *(r["reason"] for r in b["reasons"])]
        for b in report["boards"]
        if b["outliers"] or b["reasons"]
    }
    for board_name, texts in sorted(named.items()):
        print(f"  {board_name}: {'; '.join(dict.fromkeys(texts))}")
    missed = {name for name, odd in ODD.items() if odd not in str(named.get(name))}
    print(f"not named: {sorted(missed)}; named beside them: {sorted(set(named) - set(ODD))}")


if __name__ == "__main__":
    main()
