"""Does an accuracy budget keep its word? Judging people drawn again and again, the loss on others.

    python benchmarks/budget_draws.py FACES BUNDLE --cache FOLDER [--draws 20]
        [--max-tar-drop 0.003] [--far 1e-5] [--share 0.5] [--seed 0]

One identity in ten calibrates. In each draw a random share of the others judges, as `calibrate`
judges with a budget (`search_assignment`), and the loss of what was taken is measured on the rest.
Embeddings of the float network and of every assignment that a search visits are computed once
for all faces (at most 8 of a person, and a third of those who have one) and kept in FOLDER, so a
draw costs no inference; layers are ranked on calibration faces, so all draws visit one list.

The network is the hard one of `int8_loss.py --hard`, which must keep layers in float. Prints one JSON
line for each draw: its verdict (`kept`, `exceeded`, `cannot judge`), what was taken, its loss on the
judging people and on the others, counted and smoothed; then how many of the kept ones lost more
than the budget on the others. onnxruntime's CPU computes the INT8 roundings, which is not TensorRT.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from int8_loss import harden

from fr_edge.arrays import F32, I64
from fr_edge.bundle.bundle import open_bundle
from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.fitting import RANGES_ONLY
from fr_edge.calibration.search.budget import Budget, judge_loss
from fr_edge.calibration.search.mixed_precision import (
    REASON,
    Assignment,
    HeldOutJudge,
    search_assignment,
)
from fr_edge.errors import FrEdgeError
from fr_edge.faces.contract import InputSpec, preprocess
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.graph.layers import choose_int8_layers
from fr_edge.graph.prelu import blended
from fr_edge.inference import make_session
from fr_edge.metrics.rates import EmbeddingLoss
from fr_edge.progress import silent

IMAGES = 8  # of a person, as `calibrate` judges
SINGLES_EVERY = 3  # person of one image: they make impostor pairs only
CALIBRATE_EVERY = 10  # one identity in so many


@dataclass(frozen=True)
class Pool:
    """Everybody who may judge: labels and cached embeddings."""

    judge: HeldOutJudge  # of all picks
    table: Any
    labels: I64
    cache: Path
    layer_errors: dict[str, float] = field(default_factory=dict)

    def embeddings(self, float_layers: tuple[str, ...] | None) -> F32:
        """Of all faces, by the assignment; None is the float model."""
        name = "fp32" if float_layers is None else json.dumps(sorted(float_layers))
        path = self.cache / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            model = self.judge.model
            if float_layers is not None:
                choice = choose_int8_layers(model, dict.fromkeys(float_layers, REASON))
                model = self.judge.quantize(self.table, choice)
            rows = self.embed(model)
            np.save(path.with_suffix(".part.npy"), rows)
            path.with_suffix(".part.npy").rename(path)
        rows: F32 = np.load(path)
        return rows

    def embed(self, model: onnx.ModelProto) -> F32:
        """With one thread: several wait for each other on a busy machine."""
        session = make_session(blended(model).SerializeToString(), threads=1)
        batches = self.judge.faces.batches(4, self.judge.picks)
        parts = [session.run(None, {"face": preprocess(b, self.judge.spec)})[0] for b in batches]
        return np.concatenate(parts)

    def loss(self, float_layers: tuple[str, ...], rows: I64, far: float) -> EmbeddingLoss:
        reference, engine = self.embeddings(None), self.embeddings(float_layers)
        return judge_loss(reference[rows], engine[rows], self.labels[rows], far)


@dataclass(frozen=True, kw_only=True)
class CachedJudge(HeldOutJudge):
    """A judge of some of the pool's faces, from the pool's embeddings."""

    pool: Pool
    rows: I64

    def assess(self, table: Any, float_layers: Any, far: Any, cost: Any) -> Assignment:
        layers = tuple(float_layers)
        choice = choose_int8_layers(self.model, dict.fromkeys(layers, REASON))
        loss = self.pool.loss(layers, self.rows, far)
        return Assignment(layers, choice.mac_share, len(choice.tensors), cost(choice), loss)

    def layer_error(self, table: Any, layer: str) -> float:
        return self.pool.layer_errors[layer]


def fill(bundle: Path, faces: Faces, spec: InputSpec, cache: Path, calibration: list[int]) -> Pool:
    """Calibrate, and rank the layers on calibration faces."""
    done = calibrate(bundle, faces.subset(calibration), "minmax", 128, steps=RANGES_ONLY)
    model = onnx.load(bundle / "model.onnx")
    rng = np.random.default_rng(0)
    fitted = HeldOutJudge(
        model, spec, faces, sorted(rng.choice(calibration, 24, False)), {}, silent
    )
    path = cache / "layers.json"
    if not path.exists():
        errors = {n: fitted.layer_error(done.table, n) for n in choose_int8_layers(model).int8}
        path.write_text(json.dumps(errors))
    chosen = []
    for person in np.unique(faces.labels):
        images = np.flatnonzero(faces.labels == person)
        single = len(images) == 1 and person % SINGLES_EVERY
        if not single and not set(images) & set(calibration):
            chosen += [int(i) for i in images[:IMAGES]]
    judge = HeldOutJudge(model, spec, faces, chosen, {}, silent)
    return Pool(judge, done.table, faces.labels[chosen], cache, json.loads(path.read_text()))


def rate_row(loss: EmbeddingLoss, far: float) -> dict[str, Any]:
    rate = loss.at(far)
    if rate is None:
        return {"genuine": loss.genuine_pairs}
    return {
        "genuine": loss.genuine_pairs,
        "counted": rate.drop,
        "counted_change_95": rate.interval_95 and rate.interval_95.delta,
        "smoothed": rate.smoothed_drop,
        "interval_95": rate.smoothed_drop_interval_95,
        "cosine_min": loss.cosine.min,
    }


def draw(pool: Pool, budget: Budget, share: float, seed: int, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(pool.labels))
    judging = np.isin(pool.labels, people[: round(share * len(people))])
    rows, others = np.flatnonzero(judging), np.flatnonzero(~judging)
    all_faces = pool.judge
    picks = [all_faces.picks[i] for i in rows]
    judge = CachedJudge(
        all_faces.model, all_faces.spec, all_faces.faces, picks, {}, silent, pool=pool, rows=rows
    )
    try:
        searched = search_assignment(pool.table, judge, budget, folder / "unused.bundle")
    except FrEdgeError as error:
        verdict = "cannot judge" if "cannot judge" in str(error) else "exceeded"
        return {"seed": seed, "verdict": verdict, "why": str(error)}
    taken = searched.assignments[-1]
    return {
        "seed": seed,
        "verdict": "kept",
        "left_out": len(taken.float_layers),
        "judged": rate_row(taken.loss, budget.far),
        "others": rate_row(pool.loss(taken.float_layers, others, budget.far), budget.far),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--max-tar-drop", type=float, default=0.003)
    parser.add_argument("--far", type=float, default=1e-5)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    faces = open_faces(asked.faces)
    calibration = [int(i) for i in np.flatnonzero(faces.labels % CALIBRATE_EVERY == 0)]
    cache = asked.cache / asked.bundle.name
    cache.mkdir(parents=True, exist_ok=True)
    budget = Budget(asked.max_tar_drop, far=asked.far)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / asked.bundle.name
        shutil.copytree(asked.bundle, copy)
        harden(copy)
        spec = open_bundle(copy, check="manifest").spec
        pool = fill(copy, faces, spec, cache, calibration)
        one = partial(draw, pool, budget, asked.share, folder=Path(name))
        rows = []
        for seed in range(asked.seed, asked.seed + asked.draws):
            rows.append(one(seed=seed))
            print(json.dumps(rows[-1]), flush=True)
    kept = [row for row in rows if row["verdict"] == "kept"]
    more = [r for r in kept if r["others"]["counted"] > asked.max_tar_drop]
    smoothed = [r for r in kept if r["others"]["smoothed"] > asked.max_tar_drop]
    summary = {
        "bundle": asked.bundle.name,
        "people": len(np.unique(pool.labels)),
        "faces": len(pool.labels),
        "draws": len(rows),
        "kept": len(kept),
        "cannot_judge": sum(row["verdict"] == "cannot judge" for row in rows),
        "exceeded": sum(row["verdict"] == "exceeded" for row in rows),
        "kept_but_counted_more_on_others": len(more),
        "kept_but_smoothed_more_on_others": len(smoothed),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
