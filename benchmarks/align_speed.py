"""CPU time of aligning photographs, and the faces found in them, by two revisions in one run.

    git worktree add ../before REVISION
    OMP_NUM_THREADS=1 python benchmarks/align_speed.py DATA --before ../before [--detectors yunet_fp32]

DATA holds faces_dev.tar and the detectors. The photographs are drawn: aligned LFW faces, scaled, turned
by up to 15 degrees and put onto blurred noise (see KINDS); they are not LFW's originals. `align_folder`
of both revisions runs over them in turns, each time into a new folder, in a process and a thread of its
own; the shortest turn counts. `found` are faces of the earlier revision that the present one finds too
(boxes that overlap by half), `shift` is the mean distance of their five landmarks in pixels of the
photograph: median and 95 %.
"""

import argparse
import inspect
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

KINDS = {  # name -> photographs, width, height, smallest and largest face in pixels, faces
    "250x250": (60, 250, 250, 95, 140, 1),
    "640x480": (20, 640, 480, 40, 250, 2),
    "1600x1200": (8, 1600, 1200, 80, 600, 3),
    "4000x3000": (4, 4000, 3000, 200, 1500, 3),
}


def draw_photographs(data: Path, folder: Path) -> None:
    draw = np.random.default_rng(0)
    with tarfile.open(data / "faces_dev.tar") as archive:
        names = [name for name in archive.getnames() if name.startswith("lfw/") and ".jpg" in name]
        faces = []
        for name in draw.choice(sorted(names), 200, replace=False):
            stream = archive.extractfile(str(name))
            assert stream is not None
            faces.append(Image.open(io.BytesIO(stream.read())).convert("RGB"))
    for kind, (count, width, height, low, high, people) in KINDS.items():
        (folder / kind).mkdir()
        for number in range(count):
            photo = draw_background(draw, width, height)
            for _ in range(people):
                side = int(np.exp(draw.uniform(np.log(low), np.log(high))))
                face = faces[draw.integers(len(faces))].resize(
                    (side, side), Image.Resampling.BICUBIC
                )
                edge = max(1, round(side * 0.08))
                mask = Image.new("L", (side, side))
                mask.paste(255, (edge, edge, side - edge, side - edge))
                mask = mask.filter(ImageFilter.GaussianBlur(edge / 2))
                left, top = (
                    int(draw.integers(room) if people > 1 else room // 2)
                    for room in (width - side, height - side)
                )
                turned = face.rotate(draw.uniform(-15, 15), Image.Resampling.BICUBIC)
                photo.paste(turned, (left, top), mask)
            photo.save(folder / kind / f"{number:03}.jpg", quality=90)


def draw_background(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    coarse = draw.integers(60, 190, (height // 25 + 1, width // 25 + 1, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + draw.normal(0, 5, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def work(detector: Path, photographs: Path) -> None:
    """In a process of its own: "find" prints the faces, "align" the CPU seconds of a photograph."""
    from fr_edge import inference
    from fr_edge.faces.align import align_folder
    from fr_edge.faces.detect import open_detector
    from fr_edge.faces.images import decode_photograph

    inference.make_session.__kwdefaults__["threads"] = 1
    one = {"threads": 1} if "threads" in inspect.signature(open_detector).parameters else {}
    largest = {"faces": "largest"} if "faces" in inspect.signature(align_folder).parameters else {}
    detect = open_detector(detector, **one)
    files = sorted(photographs.iterdir())
    for command in sys.stdin:
        answer: Any
        if command.strip() == "find":
            answer = [
                [[face.box.tolist(), face.points.tolist()] for face in detect(image)]
                for image in (decode_photograph(file.read_bytes(), file.name) for file in files)
            ]
        else:
            with tempfile.TemporaryDirectory() as folder:
                started = time.process_time()
                align_folder(photographs, Path(folder) / "out", detect, **largest)
                answer = (time.process_time() - started) / len(files)
        print(json.dumps(answer), flush=True)


class Side:
    """A worker with one revision of fr_edge."""

    def __init__(self, source: Path, folder: Path, detector: Path, photographs: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "fr_edge").unlink(missing_ok=True)
        (folder / "fr_edge").symlink_to(source.resolve())
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", str(detector), str(photographs)],
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, command: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def compare_faces(before: list[Any], now: list[Any]) -> tuple[int, int, list[float]]:
    """Faces before, those of them found now, and the shifts of these."""
    total, shifts = 0, []
    for earlier, later in zip(before, now, strict=True):
        total += len(earlier)
        for box, points in earlier:
            same = [other for other, _ in later if overlap(box, other) > 0.5]
            if same:
                best = max(later, key=lambda face: overlap(box, face[0]))
                shifts.append(float(np.linalg.norm(np.subtract(points, best[1]), axis=1).mean()))
    return total, len(shifts), shifts


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of boxes x, y, width, height."""
    sides = [min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    common = max(0.0, sides[0]) * max(0.0, sides[1])
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier one")
    parser.add_argument("--detectors", default="yunet_fp32,scrfd_2.5g_bnkps")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    print("| photographs | detector | before, ms | now, ms | times | found | more | shift, px |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = folder / "photographs"
        photographs.mkdir()
        draw_photographs(args.data, photographs)
        for detector in args.detectors.split(","):
            for kind in args.kinds.split(","):
                sides = [
                    Side(source, folder / word, args.data / f"{detector}.onnx", photographs / kind)
                    for source, word in ((args.before, "before"), (root, "now"))
                ]
                faces = [side.ask("find") for side in sides]
                turns = [[side.ask("align") for side in sides] for _ in range(args.turns)]
                before, now = (1000 * min(turn[k] for turn in turns) for k in (0, 1))
                total, same, shifts = compare_faces(*faces)
                more = sum(map(len, faces[1])) - same
                half, most = np.percentile(shifts, [50, 95])
                print(
                    f"| {kind} | {detector} | {before:.2f} | {now:.2f} | {before / now:.1f} |"
                    f" {same} of {total} | {more} | {half:.2f} / {most:.2f} |",
                    flush=True,
                )
                for side in sides:
                    side.process.communicate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
