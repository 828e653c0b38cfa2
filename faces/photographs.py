"""Photographs of people in a folder: found, chosen and cut out once, then read like aligned faces."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import F32, I64, U8
from ..errors import FacesError
from ..progress import Track, silent
from .align import align, similarity
from .archives import list_images, read_image
from .contract import ALIGNED_SIZE, ARCFACE_TEMPLATE
from .detect import Detect, DetectedFace, FacePolicy, choose_faces
from .images import decode_photograph
from .sources import Faces, folder_faces

FOUND, NO_FACE, SEVERAL = "found", "no face", "several faces"
UNREADABLE, NOT_A_FACE = "unreadable", "landmarks not of a face"


@dataclass(frozen=True)
class Photographs:
    """Photographs with the people they show.

    Attributes:
        root: Their folder.
        keys: Paths relative to it.
        labels: Person of each, `(N,) int64`: the folder that it lies in.
    """

    root: Path
    keys: tuple[str, ...]
    labels: I64

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def labelled(self) -> bool:
        """Whether they lie in folders of several people."""
        return int(np.max(self.labels, initial=0)) > 0

    def read(self, index: int) -> U8:
        """Decode one photograph as it was meant to be seen.

        Args:
            index: Which.

        Returns:
            RGB `(H, W, 3) uint8`.

        Raises:
            FacesError: It cannot be decoded.
        """
        key = self.keys[index]
        return decode_photograph(read_image(self.root, key), key)

    def subset(self, picks: Iterable[int]) -> "Photographs":
        """Some of these photographs.

        Args:
            picks: Indices, in the order of the result.
        """
        order = [int(index) for index in picks]
        return Photographs(self.root, tuple(self.keys[i] for i in order), self.labels[order])


@dataclass(frozen=True, eq=False)
class PhotographFaces:
    """The face that was chosen in each of N photographs.

    Attributes:
        states: "found", "no face", "several faces", "unreadable" or "landmarks not of a face" of each.
        points: Landmarks in pixels of the photograph, `(N, 5, 2) float32`; NaN where none was chosen.
        faces: Every face of each photograph, the most confident first.
    """

    states: tuple[str, ...]
    points: F32
    faces: tuple[tuple[DetectedFace, ...], ...]

    @property
    def found(self) -> I64:
        """Indices of the photographs with a chosen face, `(K,) int64`."""
        return np.flatnonzero(np.array(self.states) == FOUND).astype(np.int64)


def open_photographs(folder: str | Path) -> Photographs:
    """Index a folder of photographs, at any depth.

    Args:
        folder: A folder per person, or photographs alone.

    Raises:
        FacesError: There is no such folder, or it holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FacesError(f"there is no folder {root}", "give a folder of photographs")
    keys = list_images(root)
    if not keys:
        raise FacesError(f"{root} holds no images", "give a folder of photographs")
    return Photographs(root, tuple(keys), folder_faces(root, keys).labels)


def find_faces(
    photographs: Photographs,
    detect: Detect,
    policy: FacePolicy = "largest",
    track: Track = silent,
    *,
    check: Callable[[U8, F32], None] = lambda image, landmarks: None,
) -> PhotographFaces:
    """Detect the faces of photographs, and choose one in each.

    Args:
        photographs: What to look at.
        detect: Finds the faces of a photograph.
        policy: Which of several faces, as `choose_faces`; not "all".
        track: Shows progress.
        check: Raises FacesError for a photograph and landmarks `(1, 5, 2) float32` that cannot be
            those of a face in it, such as `runtime.frames.check_frame`.

    Returns:
        What was found. A photograph that cannot be decoded, or whose landmarks cannot be those of a
        face, counts as such and ends nothing.
    """
    states, everything = [], []
    points = np.full((len(photographs), 5, 2), np.nan, np.float32)
    order = range(len(photographs))
    for index in track(order, "detecting", len(photographs)):
        found: tuple[DetectedFace, ...] = ()
        try:
            image = photographs.read(index)
        except FacesError:
            states.append(UNREADABLE)
            everything.append(found)
            continue
        found = tuple(detect(image))
        if not found or (policy == "one" and len(found) > 1):
            states.append(SEVERAL if found else NO_FACE)
        else:
            chosen = choose_faces(list(found), image.shape, policy)[0].points
            try:
                similarity(chosen, np.array(ARCFACE_TEMPLATE))
                check(image, chosen[None])
                points[index] = chosen
                states.append(FOUND)
            except FacesError:
                states.append(NOT_A_FACE)
        everything.append(found)
    return PhotographFaces(tuple(states), points, tuple(everything))


def cut_faces(photographs: Photographs, chosen: PhotographFaces, picks: I64 | None = None) -> Faces:
    """The chosen faces as a source of aligned faces; each is cut out when it is read.

    Args:
        photographs: The photographs.
        chosen: Of all of them.
        picks: Indices of the photographs, each with a chosen face; None takes all that have one.

    Returns:
        Faces whose keys are those of the photographs.

    Raises:
        FacesError: No photograph shows a face.
    """
    order = [int(i) for i in (chosen.found if picks is None else picks)]
    if not order:
        counts = {state: chosen.states.count(state) for state in dict.fromkeys(chosen.states)}
        listed = ", ".join(f"{count} {state}" for state, count in counts.items())
        raise FacesError(
            f"no photograph of {photographs.root} shows a face to take: {listed}",
            "are they upright, with faces of some 30 pixels or more?",
        )

    def read(index: int, side: int = ALIGNED_SIZE) -> U8:
        place = order[index]
        return align(photographs.read(place), chosen.points[place], size=side)

    labels = np.unique(photographs.labels[order], return_inverse=True)[1].astype(np.int64)
    return Faces(
        str(photographs.root),
        tuple(photographs.keys[i] for i in order),
        labels,
        read,
        labelled=photographs.labelled,
        read_at=read,
    )
