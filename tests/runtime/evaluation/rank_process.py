"""What each process of test_rank_embedding.py runs, with TASK and the environment as globals."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fr_edge.arrays import F32, U8
from fr_edge.cli.main import run
from fr_edge.errors import FacesError, FrEdgeError
from fr_edge.faces import embedding_log
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.runtime.evaluation import rank_exchange
from fr_edge.runtime.evaluation.rank_embedding import embed_share, embedded_batches

SOURCE = "synthetic:20x8@7"


class PixelSums:
    """A double of a session: its embeddings are sums of pixels, and it counts the faces."""

    dim = 4

    def __init__(self, counted: Path) -> None:
        self.seen, self.counted = 0, counted

    def embed(self, images: U8) -> F32:
        self.seen += len(images)
        self.counted.write_text(str(self.seen))
        rows: F32 = images.reshape(len(images), self.dim, -1).sum(2).astype(np.float32)
        return rows


def spoiled(faces: Faces, at: int, how: str, others: Path) -> Faces:
    """The same faces; the process finds a damaged image at one of them, or dies when rank 0 has done its share."""

    def read(index: int) -> U8:
        if index == at and how == "die":
            while not others.exists() or others.read_text() != "64":
                time.sleep(0.05)
            time.sleep(1)  # ten signs of life
            os.kill(os.getpid(), signal.SIGKILL)
        if index == at:
            raise FacesError(f"face {index} is not an image")
        return faces.read(index)

    return replace(faces, read=read)


def embed_sums(folder: Path, at: int, how: str) -> int:
    """Embed by the double: rank 0 writes rows.npy, each rank what it has embedded; the exit code."""
    ranks = rank_exchange.share_of_environment()
    session = PixelSums(folder / f"seen-{ranks.rank}")
    session.counted.write_text("0")
    faces = spoiled(open_faces(SOURCE), at, how, folder / "seen-0")
    try:
        if ranks.rank:
            embed_share(session, faces, ("sums",), ranks=ranks)
        else:
            rows = list(embedded_batches(session, faces, ("sums",), ranks=ranks))
            np.save(folder / "rows.npy", np.concatenate(rows))
    except FrEdgeError as error:
        (folder / f"error-{ranks.rank}").write_text(f"{error.message}\n{error.hint}")
        return error.exit_code
    return 0


def main(task: dict[str, Any]) -> int:
    rank_exchange._ABSENT_S = task.get("absent_s", 60.0)
    rank_exchange._BEAT_S = 0.1
    embedding_log._AFTER_S = 0.0
    if "line" not in task:
        return embed_sums(task["folder"], task.get("at", -1), task.get("how", ""))
    out = task["folder"] / f"out-{os.environ.get('RANK', 'alone')}"
    with out.open("w") as sys.stdout:
        return run(task["line"])


if __name__ == "__main__":
    os.environ.update(globals()["ENV"])
    sys.exit(main(globals()["TASK"]))
