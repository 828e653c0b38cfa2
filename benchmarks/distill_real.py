"""Students of SFace on real faces: AdaDistill against other methods with the same budget.

    python benchmarks/distill_real.py DATA --work FOLDER [--seeds 0,1,2] [--set key=value]...

DATA holds faces_dev.tar and sface_fp32.onnx. Everybody in folds 8 and 9 of its pairs.csv is kept
out of training, and so is everybody in folds 6 and 7, on whom nothing is chosen: folds 8 and 9 give
`accuracy`, each judged at the other's threshold, and folds 6 and 7 `others`. From all pairs of their
images come `choice_tar@FAR` and `tar@FAR`. With --train-others folds 6 and 7 are trained on too, and
not judged. Each training is the shipped recipe `small-real` with losses or optimizer changed; methods that
need no teacher ignore it. Each finished run is a line of FOLDER/runs.jsonl, and a call that was stopped
goes on: with the training it was in, and without those that are finished.
"""

import argparse
import csv
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fr_edge.arrays import F32, U8
from fr_edge.bundle.manifest import Bundle
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.student import Student
from fr_edge.distill.train import distill_student
from fr_edge.distill.weights import load_network
from fr_edge.faces.pairs import read_pairs
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.metrics.accuracy import pair_accuracy

PLAIN = ["output=plain", "teacher_views=each"]  # the paper's student and targets
SGD = ["optimizer=sgd", "lr=0.1", "weight_decay=5e-4", "clip=5", "shift=0"]  # the paper's steps
METHODS = {
    "arcface": ["losses=arcface", "dim=128", *SGD],
    "features": ["losses=mse", *PLAIN, *SGD],
    "centres": ["losses=centres", *PLAIN, *SGD],
    "adadistill": ["losses=adadistill", *PLAIN, *SGD],
    "adadistill-muon": ["losses=adadistill", *PLAIN],  # the paper's loss, the recipe's steps
    "ours-sgd": SGD,  # the recipe's losses, the paper's steps
    "ours": [],  # the recipe as it ships
}
FOLDS = {"choice": ("8", "9"), "others": ("6", "7")}
ACCURACIES = {"choice": "accuracy", "others": "others"}
TARS = {"choice": "choice_tar@", "others": "tar@"}
FARS = (1e-2, 1e-3, 1e-4)


def prepare(data: Path, work: Path) -> dict[str, Path]:
    """Folders of the training faces, of both groups kept apart and of all but "choice", and the lists
    of both groups' pairs."""
    faces = work / "faces"
    places = {name: work / name for name in ("train", "choice", "others", "train-others")}
    places |= {"choice_pairs": faces / "choice.csv", "others_pairs": faces / "others.csv"}
    if all(place.exists() for place in places.values()):
        return places
    with tarfile.open(data / "faces_dev.tar") as archive:
        archive.extractall(faces, filter="data")
    with (faces / "pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    group_of = {}
    for group, folds in FOLDS.items():
        chosen = [row for row in rows if row["fold"] in folds]
        people = {Path(row[key]).parent for row in chosen for key in ("path1", "path2")}
        group_of |= dict.fromkeys(people, group)
        with places[f"{group}_pairs"].open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(chosen)
    for path in sorted(faces.rglob("*.jpg")):
        inside = path.relative_to(faces)
        group = group_of.get(inside.parent, "train")
        for name in (group,) if group == "choice" else (group, "train-others"):
            link = places[name] / inside
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # of a call that was stopped, or runs beside this one
                os.link(path, link)
    return places


def judged(
    bundle: Bundle, groups: Mapping[str, Faces], places: dict[str, Path]
) -> dict[str, float]:
    """Accuracy of each group on its listed pairs, and TAR from all pairs of its images."""
    network, _, _ = load_network(bundle.file("model.pt"))
    student = Student(network, bundle.embedding_dim, bundle.embedding_dim).eval()

    def embed(part: U8) -> F32:
        with torch.no_grad():
            rows: F32 = student.embed(torch.from_numpy(part)).numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return judged_embeddings(embed, groups, places)


def judged_embeddings(
    embed: Callable[[U8], F32], groups: Mapping[str, Faces], places: dict[str, Path]
) -> dict[str, float]:
    """The same for any function from faces to unit embeddings."""
    figures = {}
    for group, faces in groups.items():
        listed = read_pairs(places[f"{group}_pairs"])
        rows = np.concatenate([embed(part) for part in listed.faces.batches(64)])
        figures[ACCURACIES[group]] = pair_accuracy(rows, listed).mean
        rows = np.concatenate([embed(part) for part in faces.batches(64)])
        upper = np.triu_indices(len(rows), 1)
        scores = (rows @ rows.T)[upper]
        same = (faces.labels[:, None] == faces.labels[None])[upper]
        impostors = np.sort(scores[~same])[::-1]
        for far in FARS:
            threshold = impostors[int(far * len(impostors))]
            figures[f"{TARS[group]}{far:g}"] = float((scores[same] > threshold).mean())
    return figures


def finished_runs(lines: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs that an earlier call wrote down, by method and seed."""
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return {(row["method"], row["seed"]): row for row in rows}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of each method, as Markdown."""
    runs = list(rows)
    figures = [name for name in runs[0] if name not in ("method", "seed", "steps")]
    lines = [f"| method | seeds | {' | '.join(figures)} |", "|---" * (len(figures) + 2) + "|"]
    for method in dict.fromkeys(row["method"] for row in runs):
        own = [row for row in runs if row["method"] == method]
        cells = []
        for figure in figures:
            values = np.array([row[figure] for row in own])
            digits = 0 if figure == "seconds" else 3
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        lines.append(f"| {method} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def progress_lines(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
    """Progress in ten lines on stderr."""
    for number, item in enumerate(items):
        if number % max(1, total // 10) == 0:
            os.write(2, f"{label} {number}/{total}\n".encode())
        yield item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--train-others", action="store_true")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    args = parser.parse_args()
    places = prepare(args.data, args.work)
    kept_apart = ["choice"] if args.train_others else list(FOLDS)
    trained = "train-others" if args.train_others else "train"
    faces = open_faces(places[trained])
    groups = {group: open_faces(places[group]) for group in kept_apart}
    lines = args.work / "runs.jsonl"
    runs = finished_runs(lines)
    for seed in map(int, args.seeds.split(",")):
        for method in args.methods.split(","):
            if (method, seed) in runs:
                continue
            recipe = read_recipe("small-real", [*METHODS[method], f"seed={seed}", *args.changes])
            recipe = replace(
                recipe, cache=str(args.work / f"teacher-{trained}-{recipe.teacher_views}")
            )
            result = distill_student(
                recipe,
                faces,
                args.work / f"{method}-{seed}",
                teacher=args.data / "sface_fp32.onnx",
                track=progress_lines,
            )
            row = {
                "method": method,
                "seed": seed,
                "steps": result.report.steps,
                "seconds": result.report.seconds,
                **judged(result.bundle, groups, places),
            }
            runs[method, seed] = row
            with lines.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    print(table(runs.values()))


if __name__ == "__main__":
    main()
