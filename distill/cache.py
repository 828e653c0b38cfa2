"""The teacher's embeddings, computed once: two per image, as it is and flipped.

A memory-mapped file, written block by block and resumed where it stopped, with a note beside it
that says which teacher, contract and data it belongs to.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MachineError
from ..manifest import write_atomic
from ..progress import Track, silent
from .data import Pixels
from .teacher import Teacher

F16 = npt.NDArray[np.float16]
_BLOCK = 256
_PROBES = 64


def cached_embeddings(folder: Path, teacher: Teacher, pixels: Pixels, track: Track = silent) -> F16:
    """`(N, 2, D) float16`, memory-mapped: unit embeddings of each training image and its mirror.

    Goes on where an earlier call stopped. Raises DataError for a cache of another teacher,
    contract or data, MachineError where there is no room for one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store, note = folder / "teacher.npy", folder / "teacher.json"
    shape = (len(pixels), 2, teacher.dim)
    key = {
        "teacher": teacher.sha256,
        "contract": teacher.spec.to_json(),
        "data": data_digest(pixels),
        "shape": list(shape),
    }
    done = _done(note, json.loads(json.dumps(key))) if store.exists() and note.exists() else 0
    values: Any = np.lib.format.open_memmap(store, "r+" if done else "w+", np.float16, shape)
    if not done:
        _reserve(store)
    starts = range(done, len(pixels), _BLOCK)
    for start in track(starts, "teacher", len(starts)):
        stop = min(start + _BLOCK, len(pixels))
        _, faces = pixels.block(start, stop)
        values[start:stop, 0] = teacher.embed(faces)
        values[start:stop, 1] = teacher.embed(np.ascontiguousarray(faces[:, :, ::-1]))
        values.flush()
        write_atomic(note, json.dumps({**key, "done": stop}).encode())
    held: F16 = values
    return held


def _reserve(store: Path) -> None:
    """Take the file's space now: a mapped page that finds none later kills the process."""
    size = store.stat().st_size
    try:
        with store.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        store.unlink()
        raise MachineError(
            f"the teacher's embeddings take {size / 1e6:,.1f} MB, which {store.parent} cannot hold:"
            f" {error.strerror}",
            "make room, or --set cache=FOLDER on another disk",
        ) from error


def data_digest(pixels: Pixels) -> str:
    """sha256 of the training images' names and of 64 of them, evenly spread.

    Hashing millions of images whole would take as long as embedding them.
    """
    digest = hashlib.sha256()
    for pick in pixels.picks:
        digest.update(pixels.faces.keys[int(pick)].encode() + b"\n")
    for index in np.unique(np.linspace(0, len(pixels) - 1, _PROBES).astype(int)):
        digest.update(pixels.read_near(int(index))[1].tobytes())
    return digest.hexdigest()


def _done(note: Path, key: Mapping[str, Any]) -> int:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        done = int(found.pop("done"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{note} is damaged: {error}", f"remove {note.parent}") from error
    for name, value in key.items():
        if found.get(name) != value:
            raise DataError(
                f"the teacher cache {note.parent} was made with another {name}",
                "give another --set cache=FOLDER, or remove this one",
            )
    return done
