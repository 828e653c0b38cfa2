"""What INT8 loses on people it was not calibrated on: FP32 beside INT8, same faces, same run.

    python benchmarks/int8_loss.py FACES PAIRS BUNDLE... [--limit N]
        [--max-tar-drop X [--far 1e-4] [--hard] [--backend NAME]]
    python benchmarks/int8_loss.py FACES PAIRS BUNDLE... --as-built|--noise
    python benchmarks/int8_loss.py FACES PAIRS BUNDLE... --draws 3 [--limit N] [--only 1,2]

The people whom PAIRS (`fold,path1,path2,same`, relative to FACES) names judge; all others
calibrate. Rates count every pair of the judging faces. Bundles are copied, never changed; both
networks run on onnxruntime's CPU, which is not TensorRT. One JSON document per bundle;
`likely` is what other people should lose, with its 95 % interval.

With a budget (at FAR 1e-4 or `--far`), `calibrate` searches layers to leave out; where no
assignment holds it, or the people cannot judge, `refused` is what it said. `--hard` makes that
necessary: a tenth of the channels of one tensor become 50 times as loud, which float does not
notice, and ranges are plain min-max. `--backend` times the search's engines (`onnxruntime`), else
times are counted; `cpu_time` is that of the INT8 model on onnxruntime, all in float being 1.

With `--as-built` nothing is calibrated: the bundle's INT8 graph and its INT8 engine are judged as they
are, at FAR 1e-5 and by count at rates around it, which shows how far a count is chance. With `--noise`
drawn noise takes the place of the INT8 graph's errors: normal, with their covariance, 1, .75, .55 and .4 times
their energy. What 14 draws lose in the mean is known better than what one INT8 model loses.

With `--draws` the people who do not judge are dealt into so many parts, each of which calibrates by the
defaults; the INT8 graph and the engine that this CPU builds of it are judged as by `--as-built`. One JSON
document per draw.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.equalization import equalize
from fr_edge.calibration.fitting import ALL_STEPS, RANGES_ONLY
from fr_edge.calibration.scale_groups import scale_groups
from fr_edge.calibration.search.budget import Budget
from fr_edge.documents import to_builtins
from fr_edge.errors import FacesError, GateFailed
from fr_edge.faces.pairs import read_pairs
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.layers import choose_int8_layers, weighted_layers
from fr_edge.metrics.rates import EmbeddingLoss, compare_embeddings
from fr_edge.metrics.verification import all_pairs, tar_at_far
from fr_edge.runtime.build import build_engine
from fr_edge.runtime.layer_latency import latency_here
from fr_edge.runtime.session import Artifact, open_session

FAR = 1e-4
AROUND = (4e-6, 6e-6, 8e-6, 1e-5, 1.25e-5, 1.6e-5, 2e-5, 3e-5, 5e-5)
NOISE, DRAWS = (1.0, 0.75, 0.55, 0.4), 14
ARTIFACTS: tuple[Artifact, ...] = ("graph", "engine")


def embed(bundle: Path, engine: str, faces: Faces, artifact: Artifact = "graph") -> Any:
    opened = open_bundle(bundle, check="manifest")
    session = open_session(opened, engine, "onnxruntime", artifact=artifact)
    parts = [session.embed(batch) for batch in faces.batches(32)]
    return np.concatenate(parts)


def as_built(bundle: Path, faces: Faces, exact: Any = None) -> dict[str, Any]:
    """The losses of the graph and of the engine."""
    exact = embed(bundle, "fp32", faces) if exact is None else exact
    result: dict[str, Any] = {"bundle": bundle.name, "faces": len(faces)}
    for artifact in ARTIFACTS:
        engine = embed(bundle, "int8", faces, artifact)
        before, after = (all_pairs(rows, faces.labels) for rows in (exact, engine))
        result[artifact] = rows(compare_embeddings(exact, engine, faces.labels, 1e-5))
        result[artifact]["counted"] = {
            f"{far:g}": round((tar_at_far(before, far) or 0) - (tar_at_far(after, far) or 0), 4)
            for far in AROUND
        }
    return result


def by_draws(
    bundle: Path, others: Faces, faces: Faces, draws: int, only: list[int], limit: int
) -> Iterator[dict[str, Any]]:
    """The losses after calibration on each of `draws` parts of the other people."""
    exact = embed(bundle, "fp32", faces)
    for draw in only or range(1, draws + 1):
        part = only_faces(
            others, [i for i, who in enumerate(others.labels) if who % draws == draw - 1]
        )
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / bundle.name
            shutil.copytree(bundle, copy)
            done = calibrate(copy, part, limit=limit)
            built = build_engine(copy, "int8", "onnxruntime")
            summary = to_builtins(done.report)
            yield {
                "draw": f"{draw} of {draws}",
                "people": len(np.unique(part.labels)),
                "float_layers": len(done.table.float_layers),
                "counted_time": done.report.trials[-1].cost,
                "int8_mac_share": summary["int8_mac_share"],
                "engine_layers": built.layers,
            } | as_built(copy, faces, exact)


def only_faces(faces: Faces, picks: list[int]) -> Faces:
    """These faces of a source; their people are numbered anew."""
    return replace(
        faces,
        keys=[faces.keys[i] for i in picks],
        labels=np.unique(faces.labels[picks], return_inverse=True)[1].astype(np.int64),
        read=lambda i: faces.read(picks[i]),
        encoded=None,
    )


def by_noise(bundle: Path, faces: Faces) -> dict[str, Any]:
    """Mean losses at FAR 1e-5 of float embeddings with noise like INT8's, and their standard errors."""
    exact, engine = embed(bundle, "fp32", faces), embed(bundle, "int8", faces)
    errors = engine - exact - (engine - exact).mean(axis=0)
    factor = np.linalg.cholesky(errors.T @ errors / len(errors)).T
    result: dict[str, Any] = {"bundle": bundle.name, "int8": rows_of(exact, engine, faces)}
    rng = np.random.default_rng(1)
    for share in NOISE:
        drawn = []
        for _ in range(DRAWS):
            noise = np.sqrt(share) * rng.standard_normal(errors.shape) @ factor
            drawn.append(rows_of(exact, (exact + noise).astype(np.float32), faces))
        mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(DRAWS)
        result[f"noise x {share:g}"] = {
            "mean": mean.round(5).tolist(),
            "se": error.round(5).tolist(),
        }
    return result


def rows_of(exact: Any, engine: Any, faces: Faces) -> list[float]:
    """1e4 * (1 - mean cosine), counted loss, likely loss."""
    loss = compare_embeddings(exact, engine, faces.labels, 1e-5)
    rate = loss.at(1e-5)
    assert rate is not None
    assert rate.smoothed_drop is not None
    return [1e4 * (1 - loss.cosine.mean), rate.drop, rate.smoothed_drop]


def harden(bundle: Path) -> str:
    """Make one tensor hard to represent; returns its name. It is the one in the middle."""
    model = onnx.load(bundle / "model.onnx")
    groups = scale_groups(model)
    tensors = [layer.data for layer in weighted_layers(model) if layer.groups == 1]
    tensor = [name for name in tensors if name in groups][len(tensors) // 2]
    shapes = onnx.shape_inference.infer_shapes(model).graph.value_info
    channels = next(v.type.tensor_type.shape.dim[1].dim_value for v in shapes if v.name == tensor)
    scale = np.ones(channels)
    scale[::10] = 1 / 50
    loud = equalize(model, {t: scale for t in groups if np.array_equal(groups[t], groups[tensor])})
    with transaction(bundle, "harden", {}) as draft:
        draft.path("model.onnx", "FP32 model").write_bytes(loud.SerializeToString())
    return tensor


def cpu_time(bundle: Path) -> float:
    """Of the INT8 model beside the float one, each with one face at a time."""
    model, int8 = (onnx.load(bundle / name) for name in ("model.onnx", "model.int8.onnx"))
    measure = latency_here(open_bundle(bundle, check="manifest"), "onnxruntime", 4.0)
    return measure(model, lambda _: int8).cost(choose_int8_layers(model))


def rows(loss: EmbeddingLoss) -> dict[str, Any]:
    return {
        "cosine": asdict(loss.cosine),
        "tar": {
            f"{rate.far:g}": {
                "fp32": rate.reference,
                "int8": rate.engine,
                "loss": rate.drop,
                "likely": rate.smoothed_drop,
                "likely_interval_95": rate.smoothed_drop_interval_95,
            }
            for rate in loss.rates
            if rate.far <= 1e-3
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("faces")
    parser.add_argument("pairs")
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--max-tar-drop", type=float)
    parser.add_argument("--far", type=float, default=FAR)
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--as-built", action="store_true")
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--only", default="", help="of the draws")
    parser.add_argument("--backend", default="auto")
    asked = parser.parse_args()
    source, judging = open_faces(asked.faces), read_pairs(asked.pairs, asked.faces).faces
    if asked.as_built or asked.noise:
        for bundle in asked.bundles:
            row = as_built(bundle, judging) if asked.as_built else by_noise(bundle, judging)
            print(json.dumps(row), flush=True)
        return
    judged = {key.rsplit("/", 1)[0] for key in judging.keys}
    picks = [i for i, key in enumerate(source.keys) if key.rsplit("/", 1)[0] not in judged]
    others = only_faces(source, picks)
    if asked.draws:
        numbers = [int(part) for part in asked.only.split(",") if part]
        for bundle in asked.bundles:
            for row in by_draws(bundle, others, judging, asked.draws, numbers, asked.limit):
                print(json.dumps(row), flush=True)
        return
    budget = None if asked.max_tar_drop is None else Budget(asked.max_tar_drop, far=asked.far)
    for bundle in asked.bundles:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / bundle.name
            shutil.copytree(bundle, copy)
            found: dict[str, Any] = {"bundle": bundle.name, "faces": len(judging)}
            method, steps = "auto", ALL_STEPS
            if asked.hard:
                method, steps = "minmax", RANGES_ONLY
                found["hard_tensor"] = harden(copy)
            exact = embed(copy, "fp32", judging)
            if asked.hard:
                calibrate(copy, others, method, asked.limit, steps=steps)
                loss = compare_embeddings(exact, embed(copy, "int8", judging), judging.labels)
                found["without_budget"] = rows(loss)
            latency = latency_here(open_bundle(copy), asked.backend)
            try:
                done = calibrate(
                    copy, others, method, asked.limit, steps=steps, budget=budget, latency=latency
                )
            except (GateFailed, FacesError) as error:
                print(json.dumps(found | {"refused": f"{error}; {error.hint}"}), flush=True)
                continue
            found["cpu_time"] = cpu_time(copy)
            found["summary"] = to_builtins(done.report)
            loss = compare_embeddings(exact, embed(copy, "int8", judging), judging.labels)
            print(json.dumps(found | rows(loss)), flush=True)


if __name__ == "__main__":
    main()
