"""Packages beside their bundle on faces that neither has seen: the lowest and the mean cosine.

    python benchmarks/package_equality.py BUNDLE FACES [--engine fp32] [--limit 200] [--python VENV/bin/python]

Makes a package for Python and one for C++, gives them the faces in place of the golden ones, aligned and
laid into frames, and runs the packages' own programs: Python's with the interpreter that is named (a bare
virtual environment, for example), C++'s compiled here (ONNXRUNTIME_ROOT: a folder with include and lib).
The bundle's embeddings are those of its session, which aligns frames and applies the contract on the host.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fr_edge.bundle.bundle import open_bundle
from fr_edge.faces.contract import resize_face
from fr_edge.faces.sources import open_faces, spread_picks
from fr_edge.runtime.frames import draw_frame, unit_length
from fr_edge.runtime.packages.package import package
from fr_edge.runtime.packages.package_draft import write_ppm
from fr_edge.runtime.session import open_session

FRAMES = 20  # faces that are laid into frames too


def write_faces(bundle: Path, precision: str, source: str, limit: int, folders: list[Path]) -> None:
    """Faces in place of a package's golden ones, with the bundle's embeddings."""
    opened = open_bundle(bundle)
    faces = open_faces(source)
    picks = spread_picks(faces, limit)
    side, random = opened.spec.crop_side, np.random.default_rng(0)
    lines = ["min_cosine 0.99999"]
    with open_session(opened, precision, "onnxruntime", artifact="graph") as session:
        for index, pick in enumerate(picks):
            face = faces.read(pick)
            crop = face if face.shape[0] == side else resize_face(face, side)
            images = {f"crop_{index}.ppm": (crop, np.zeros(0), session.embed(crop[None]))}
            if index < FRAMES:
                frame, points = draw_frame(face, random)
                images[f"frame_{index}.ppm"] = (frame, points, session.embed_frame(frame, points))
            for name, (image, points, embedding) in images.items():
                values = np.concatenate([points.reshape(-1), unit_length(embedding)[0]])
                lines.append(
                    " ".join([name[: name.index("_")], name, *(f"{v:.9g}" for v in values)])
                )
                for folder in folders:
                    write_ppm(folder / "golden" / name, image)
    for folder in folders:
        (folder / "golden" / "faces.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("faces")
    parser.add_argument("--engine", default="fp32")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folders = {target: Path(home, target) for target in ("python", "cpp")}
        for target, folder in folders.items():
            package(options.bundle, target, folder, options.engine)
        write_faces(
            options.bundle, options.engine, options.faces, options.limit, list(folders.values())
        )
        commands = {
            "python": [[options.python, "-s", "-B", "verify_sample.py"]],
            "cpp": [
                ["cmake", "-S", ".", "-B", "build"],
                ["cmake", "--build", "build"],
                ["build/face_sample", "verify", "."],
            ],
        }
        for target, steps in commands.items():
            for step in steps:
                done = subprocess.run(step, cwd=folders[target], capture_output=True, text=True)
            print(f"{target}: {(done.stdout + done.stderr).strip()}", flush=True)


if __name__ == "__main__":
    main()
