"""A student calibrated after its training, against one whose last epochs rounded as INT8 does.

    python benchmarks/distill_qat.py [--people 100] [--seeds 1] [--network NAME] [--json]
    python benchmarks/distill_qat.py --real DATA --work FOLDER [--seeds 1] [--json]

Three sides: calibrated with ranges and nothing else, calibrated as `fr-edge calibrate` does, and
trained on the rounding (`qat=int8`), whose ranges are its own.

Synthetic faces: a teacher is trained on some people, students learn from it on the same people with
the same budget, and all are judged on others. With `--real`: students of SFace by the recipe
`small-real`, on the people and pairs of distill_real.py; half an hour on two cores.

`tar` is the share of genuine pairs accepted at one impostor pair in a thousand, `loss` what INT8 takes
from it, cosines are means over the faces.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from distill_real import prepare

from fr_edge.calibration.calibrate import calibrate
from fr_edge.calibration.fitting import ALL_STEPS, RANGES_ONLY
from fr_edge.distill.recipe import read_recipe
from fr_edge.distill.teacher import open_teacher
from fr_edge.distill.train import distill_student
from fr_edge.export.export import export_onnx
from fr_edge.faces.contract import preprocess
from fr_edge.faces.pairs import read_pairs
from fr_edge.faces.sources import Faces, open_faces

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
FAR = 1e-3
SIDES = {
    "ranges only": RANGES_ONLY,
    "calibrated": ALL_STEPS,
    "trained": ALL_STEPS,
}


def unit(rows: F32) -> F32:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embedded(path: Path, inputs: F32) -> F32:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return unit(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def tar(rows: F32, labels: I64) -> float:
    one, two = np.triu_indices(len(rows), 1)
    cosine, same = (rows @ rows.T)[one, two], labels[one] == labels[two]
    return float((cosine[same] > np.quantile(cosine[~same], 1 - FAR)).mean())


def judge_bundle(bundle: Path, pixels: U8, teacher_rows: F32, labels: I64) -> dict[str, float]:
    inputs = preprocess(pixels, open_teacher(bundle).spec)
    float_rows = embedded(bundle / "model.onnx", inputs)
    int8_rows = embedded(bundle / "model.int8.onnx", inputs)
    cosine = (float_rows * int8_rows).sum(1)
    tars = tar(float_rows, labels), tar(int8_rows, labels)
    return {
        "int8_cosine_mean": float(cosine.mean()),
        "int8_cosine_min": float(cosine.min()),
        "teacher_cosine_fp32": float((float_rows * teacher_rows).sum(1).mean()),
        "teacher_cosine_int8": float((int8_rows * teacher_rows).sum(1).mean()),
        "tar_fp32": tars[0],
        "tar_int8": tars[1],
        "loss": tars[0] - tars[1],
    }


@dataclass(frozen=True)
class Setting:
    """Faces to train on, faces of others to judge by, and how a student is made."""

    faces: Faces
    others: Faces
    teacher: Path
    recipe: str
    changes: tuple[str, ...]
    preset: str = ""


def drawn(people: int, network: str, root: Path) -> Setting:
    faces = open_faces(f"synthetic:{people}x8@1")
    recipe = read_recipe("tiny-teacher", ["verify_identities=0"])
    teacher = distill_student(recipe, faces, root / "teacher").bundle.root
    changes = ("verify_identities=0", f"network={network}")
    return Setting(faces, open_faces(f"synthetic:{people}x6@2"), teacher, "tiny", changes)


def real(data: Path, work: Path) -> Setting:
    places = prepare(data, work)
    others = read_pairs(places["choice_pairs"]).faces
    teacher, changes = data / "sface_fp32.onnx", (f"cache={work / 'teacher'}",)
    return Setting(open_faces(places["train"]), others, teacher, "small-real", changes, "raw")


def measure(setting: Setting, seeds: int, root: Path) -> dict[str, Any]:
    faces, labels = setting.faces, setting.others.labels
    pixels = np.concatenate(list(setting.others.batches(64)))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    teacher_rows = open_teacher(setting.teacher, preset=setting.preset).embed(pixels)
    for seed in range(seeds):
        for qat in ("", "int8"):
            bundle = root / f"student{seed}{qat}"
            recipe = read_recipe(setting.recipe, [*setting.changes, f"seed={seed}", f"qat={qat}"])
            if not (bundle / "bundle.json").exists():
                distill_student(recipe, faces, bundle, teacher=setting.teacher)
            export_onnx(bundle, bundle)
            for name in ("trained",) if qat else ("ranges only", "calibrated"):
                calibrate(bundle, faces, steps=SIDES[name])
                results[name].append(judge_bundle(bundle, pixels, teacher_rows, labels))
    return {
        "seeds": seeds,
        "far": FAR,
        "teacher_tar": tar(teacher_rows, labels),
        **{
            name: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            for name, rows in results.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--network", default="mobilefacenet-0.25")
    parser.add_argument("--real", type=Path, metavar="DATA")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.real and not args.work:
        parser.error("--real needs --work FOLDER")
    with tempfile.TemporaryDirectory() as place:
        root = args.work or Path(place)
        setting = real(args.real, root) if args.real else drawn(args.people, args.network, root)
        result = measure(setting, args.seeds, root)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{setting.faces.where}, {args.seeds} seeds; teacher's tar {result['teacher_tar']:.4f}")
    for name in SIDES:
        print(name, *(f"{key} {value:.5f}" for key, value in result[name].items()), sep="\n  ")


if __name__ == "__main__":
    main()
