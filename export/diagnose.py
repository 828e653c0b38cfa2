"""Finds the input contract that a network was trained with, from faces of known identity.

The likely ways to make a face an input are tried; the right one separates genuine from impostor
scores best. Two that differ less than chance, or than anyone would notice, are called a tie.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..bundle import open_bundle
from ..errors import FacesError
from ..faces.contract import FRAME, PRESETS, InputSpec, Triple, preprocess
from ..faces.sources import Faces
from ..progress import Track, silent
from .diagnosis import Candidate, Diagnosis, like
from .foreign import contract_in, face_input, read_onnx
from .reference import Embed, onnx_embedder
from .separation import Sums, d_prime, lead, pair_sums
from .tidy import tidy

Images = npt.NDArray[np.uint8]

SCALES: dict[str, tuple[Triple, Triple]] = {
    "insightface": (PRESETS["insightface"].mean, PRESETS["insightface"].std),
    "raw": (PRESETS["raw"].mean, PRESETS["raw"].std),
    "127.5/128": ((127.5,) * 3, (128.0,) * 3),
    "/255": ((0.0,) * 3, (255.0,) * 3),
    "imagenet": (PRESETS["imagenet"].mean, PRESETS["imagenet"].std),
}
"""Mean and std of pixels 0..255, the more usual first: of several that tie, the first is named."""

VIEWS: dict[str, Callable[[Images], Images]] = {
    "upright": lambda faces: faces,
    "mirrored": lambda faces: faces[:, :, ::-1],
    "upside down": lambda faces: faces[:, ::-1],
    "rows and columns swapped": lambda faces: faces.transpose(0, 2, 1, 3),
    "channels last read as channels first": lambda faces: (
        np.ascontiguousarray(faces).reshape(-1, 3, FRAME, FRAME).transpose(0, 2, 3, 1)
    ),
}
"""What may have happened to the faces, tried with the best contract; `upright` is first."""

SAME = 0.01
"""A lead of less than 1 % of d' changes nothing that anyone would notice."""
_SCOUTS = 48
_HOPELESS = 0.5
_BATCH = 16


@dataclass(frozen=True, eq=False)
class _Trial:
    """How well a network separates, fed in one way."""

    name: str
    spec: InputSpec
    view: str
    sums: Sums


def diagnose(
    source: str | Path, faces: Faces, *, limit: int = 160, track: Track = silent
) -> Diagnosis:
    """Diagnose a bundle's `model.onnx` or somebody's ONNX file; see `diagnose_embedder`.

    Raises BundleError and ModelError for a source that cannot be used.
    """
    source = Path(source)
    bundle = open_bundle(source) if source.is_dir() else None
    model = tidy(read_onnx(bundle.file("model.onnx") if bundle else source))
    face = face_input(model)
    size = (face.height or FRAME, face.width or FRAME)
    declared = bundle.spec if bundle else contract_in(model)
    embed = onnx_embedder(model.SerializeToString())
    return diagnose_embedder(embed, size, faces, declared, limit=limit, track=track)


def diagnose_embedder(
    embed: Embed,
    size: tuple[int, int],
    faces: Faces,
    declared: InputSpec | None = None,
    *,
    limit: int = 160,
    track: Track = silent,
) -> Diagnosis:
    """Rank the candidates for a network that takes `size` (height, width), on `limit` images.

    Raises FacesError when there are not 8 identities with two images or more.
    """
    picks, labels = _pairs(faces, limit)
    images = np.stack([faces.read(index) for index in picks])
    plans = [
        (name, InputSpec(*size, channels=channels, mean=mean, std=std))
        for name, (mean, std) in SCALES.items()
        for channels in ("RGB", "BGR")
    ]
    if declared and not any(like(spec, declared) for _, spec in plans):
        plans.append(("declared", declared))
    few = slice(0, min(_SCOUTS, len(images)))

    def tried(name: str, spec: InputSpec, view: str, part: slice) -> _Trial:
        seen = VIEWS[view](images[part])
        parts = [
            embed(preprocess(seen[start : start + _BATCH], spec))
            for start in range(0, len(seen), _BATCH)
        ]
        return _Trial(name, spec, view, pair_sums(np.concatenate(parts), labels[part]))

    def scouts(view: str) -> list[_Trial]:
        label = f"trying contracts, {view}"
        return [tried(*plan, view, few) for plan in track(plans, label, len(plans))]

    upright = scouts("upright")
    best = max(upright, key=_score)
    turned = [
        tried(best.name, best.spec, view, few)
        for view in track(list(VIEWS)[1:], "turning the faces", len(VIEWS) - 1)
    ]
    view = max([best, *turned], key=_score).view
    wrong_way = view != "mirrored" and lead(max(turned, key=_score).sums, best.sums)[0] > 0
    scouted = scouts(view) if wrong_way else upright
    top = max(map(_score, scouted))
    # All images for those in the running; a few have said enough about the others.
    hopeful = [trial for trial in scouted if _score(trial) >= _HOPELESS * top]
    running = [
        tried(trial.name, trial.spec, trial.view, slice(None))
        for trial in track(hopeful, "trying the best", len(hopeful))
    ]
    if wrong_way:  # that view is among the scouted by now
        turned = [trial for trial in turned if trial.view != view]
    rest = [trial for trial in [*scouted, *turned] if trial not in hopeful]
    return Diagnosis(_ranking(running, rest), declared, len(set(labels)), len(images))


def _score(trial: _Trial) -> float:
    return d_prime(trial.sums)


def _ranking(running: list[_Trial], rest: list[_Trial]) -> tuple[Candidate, ...]:
    """Best first, and of those that tie with the best the most usual first."""
    first = max(running, key=_score)

    def ties(trial: _Trial) -> bool:
        gap = _score(first) - _score(trial)
        return gap <= SAME * abs(_score(first)) or lead(first.sums, trial.sums)[0] <= 0

    tied = [trial for trial in running if ties(trial)]
    others = sorted((t for t in [*running, *rest] if t not in tied), key=_score, reverse=True)
    return tuple(
        Candidate(trial.name, trial.spec, trial.view, _score(trial), trial in tied)
        for trial in [*tied, *others]
    )


def _pairs(faces: Faces, limit: int) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Images in turns of two per identity, many identities before many images; their labels."""
    members: dict[int, list[int]] = {}
    for index, label in enumerate(faces.labels):
        members.setdefault(label, []).append(index)
    people = [found for found in members.values() if len(found) > 1]
    if len(people) < 8:
        raise FacesError(
            f"{faces.where} has {len(people)} identities with two images or more; 8 are needed",
            "give a folder with one sub-folder of images per identity",
        )
    count = min(len(people), max(8, limit // 2))
    people = [people[i * len(people) // count] for i in range(count)]
    each = max(2, limit // count)
    # The scouts are the first images: pairs of as many people as there are.
    turns = [
        (number, index)
        for start in range(0, each, 2)
        for number, found in enumerate(people)
        for index in found[start : min(start + 2, each)]
    ]
    return [index for _, index in turns], np.array([number for number, _ in turns], np.int64)
