"""Students of SFace on real faces: AdaDistill against other methods with the same budget.

    python benchmarks/distill_real.py DATA --work FOLDER [--set key=value]... [--json]

DATA holds faces_dev.tar and sface_fp32.onnx. Everybody in folds 8 and 9 of its pairs.csv is kept
out of training; accuracy is on the pairs of those folds, each judged at the other's threshold.
Each training is the shipped recipe `small-real` with the method alone changed.
"""

import argparse
import csv
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.train import distill_student
from fr_edge.faces.sources import open_faces

METHODS = ("adadistill", "centres", "features", "arcface")
TEST_FOLDS = ("8", "9")


def prepare(data: Path, work: Path) -> tuple[Path, Path]:
    """The training folder and the list of test pairs."""
    faces, train, pairs = work / "faces", work / "train", work / "faces" / "test.csv"
    if not pairs.exists():
        with tarfile.open(data / "faces_dev.tar") as archive:
            archive.extractall(faces, filter="data")
        with (faces / "pairs.csv").open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["fold"] in TEST_FOLDS]
        strangers = {Path(row[key]).parent for row in rows for key in ("path1", "path2")}
        for path in sorted(faces.rglob("*.jpg")):
            inside = path.relative_to(faces)
            if inside.parent not in strangers and not (train / inside).exists():
                (train / inside).parent.mkdir(parents=True, exist_ok=True)
                os.link(path, train / inside)
        with pairs.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return train, pairs


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
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    train, pairs = prepare(args.data, args.work)
    faces, rows = open_faces(train), []
    for seed in args.seeds.split(","):
        for method in args.methods.split(","):
            changes = [f"method={method}", f"seed={seed}", f"verify_pairs={pairs}"]
            changes += [f"cache={args.work / 'teacher'}", "dim=128", *args.changes]
            out = args.work / f"{method}-{seed}"
            report = distill_student(
                read_recipe("small-real", changes),
                faces,
                out,
                teacher=args.data / "sface_fp32.onnx",
                track=progress_lines,
            ).report
            keys = ("accuracy", "untrained_accuracy", "teacher_accuracy", "seconds", "images_per_s")
            row = {
                "method": method,
                "seed": int(seed),
                **{key: getattr(report, key) for key in keys},
            }
            rows.append(row)
            if not args.json:
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if args.json:
        print(json.dumps({"images": len(faces), "identities": faces.identities, "runs": rows}))


if __name__ == "__main__":
    main()
