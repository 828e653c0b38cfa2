"""Enrol people with the FP32 network, identify them, and move the gallery to the INT8 engine."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fr_edge import Gallery, Recogniser, build_engine, migrate_gallery

bundle, folder = sys.argv[1], Path(sys.argv[2])
people = {person.name: sorted(person.iterdir()) for person in sorted(folder.iterdir())}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


build_engine(bundle, "fp32")
with Recogniser(bundle, engine="fp32") as recogniser:
    gallery = Gallery(recogniser.model)
    for name, images in people.items():
        gallery.enrol(name, recogniser.embed(read(images[0])))
    probes = recogniser.embed_batch([read(images[1]) for images in people.values()])
    matches = gallery.search(probes, threshold=0.5)
    right = sum(bool(m) and m[0].name == name for m, name in zip(matches, people, strict=True))
    print(f"{right} of {len(people)} identified")
    gallery.save("staff.gallery")

with Recogniser(bundle, engine="int8") as recogniser:
    photographs = {name: [read(images[0])] for name, images in list(people.items())[:3]}
    moved = migrate_gallery("staff.gallery", recogniser, photographs)
    print(f"{moved.verdict}: {len(moved.gallery)} people in the new gallery")
    moved.gallery.save("staff-int8.gallery")
