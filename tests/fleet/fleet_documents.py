"""Small evidence of boards, as their commands would write it."""

import json
from pathlib import Path
from typing import Any

MODEL = "a" * 64


def verification(cosine: float = 0.99, verdict: str = "PASSED", model: str = MODEL) -> Any:
    drift = {"faces": 16, "min": cosine, "p1": cosine, "p5": cosine, "median": cosine}
    drift |= {"mean": cosine, "histogram": {"edges": [0.0, 1.0], "counts": [16]}, "worst": []}
    reason = {"verdict": verdict, "reason": "min cosine 0.9", "cure": "calibrate again"}
    return {
        "passed": verdict == "PASSED",
        "verdict": verdict,
        "reasons": [] if verdict == "PASSED" else [reason],
        "engine": "int8",
        "backend": "tensorrt",
        "reference": "the network",
        "cosine": drift,
        "gates": [],
        "golden": {"original": "model.pt", "fp32_min_cosine": 1.0, "engine": drift},
        "tar": {
            "1e-3": {
                "far": 1e-3,
                "reference": 0.98,
                "engine": 0.97,
                "delta": -0.01,
                "interval_95": {
                    "reference": [0.97, 0.99],
                    "engine": [0.96, 0.98],
                    "delta": [-0.02, 0.0],
                },
            }
        },
        "provenance": {"files": {"model.int8.onnx": model, "engines/x.plan": "b" * 64}},
    }


def timing(p50: float = 1.0, mode: str = "MAXN", throttled: tuple[str, ...] = ()) -> Any:
    spans = ("clock_mhz", "power_mw", "load_percent", "fan")
    board = {name: {} for name in spans} | {"temperature_c": {"gpu": [40.0, 61.0]}}
    board |= {"memory_mb": {"machine": [900.0, 950.0], "process": [200.0, 210.0]}}
    board |= {"throttled": list(throttled), "power_mode": [mode]}
    run = {"batch": 1, "verdict": "INVALID" if throttled else "VALID", "board": board}
    run |= {"latency_ms": {"p50": p50, "p99": 1.2 * p50}, "interval_95_ms": {}}
    run |= {"throughput_per_s": 1000 / p50}
    return {"engine": "int8", "backend": "tensorrt", "verdict": run["verdict"], "runs": [run]}


def system(kind: str = "NVIDIA Jetson Orin Nano") -> Any:
    device = {"cpu": "ARM", "cores": 6, "memory_gb": 8.0, "os": "Ubuntu", "arch": "aarch64"}
    device |= {"python": "3.10.12", "gpu": [kind], "jetson": kind, "packages": {"tensorrt": "10.3"}}
    return {
        "backends": {"tensorrt": {"ready": True, "lacks": ""}},
        "device": device,
        "l4t": "# R36 (release), REVISION: 4.3, GCID: 38968081",
        "power_mode": "MAXN",
        "cuda_driver": "12.6",
        "problems": [],
    }


def write_board(root: Path, name: str, **documents: Any) -> Path:
    """A board's folder; by default a board that PASSED."""
    folder = root / name
    folder.mkdir(parents=True)
    every = {"doctor": system(), "verify": verification(), "benchmark": timing(), **documents}
    for stem, document in every.items():
        if document is not None:
            (folder / f"{stem}.json").write_text(json.dumps(document))
    return folder
