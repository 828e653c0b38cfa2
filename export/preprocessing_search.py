"""What a diagnosis of the input contract found, and its words; who tries is diagnose.py."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import U8
from ..bundle.bundle import open_bundle
from ..errors import FacesError
from ..faces.contract import ALIGNED_SIZE, PRESETS, InputSpec, Triple, preprocess
from ..faces.sources import Faces
from ..graph.load import contract_of, image_input, read_onnx
from ..graph.run import Embed, onnx_embedder
from ..metrics.decidability import PairSums, d_prime, d_prime_lead, pair_sums
from ..progress import Track, silent
from .canonicalize import tidy

SEPARATES = 1.5
"""d' below this is no recognition: about 23 % equal error rate for normal scores."""


@dataclass(frozen=True)
class ContractCandidate:
    """One way to feed the network; `tied` with the first of the ranking."""

    name: str
    spec: InputSpec
    view: str
    d_prime: float
    tied: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "channels": self.spec.channels,
            "input": self.spec.to_json(),
            "view": self.view,
            "d_prime": self.d_prime,
            "tied": self.tied,
        }


@dataclass(frozen=True)
class PreprocessingResult:
    """Candidates, the best first, for a network whose file or bundle says `declared`, if any."""

    ranking: tuple[ContractCandidate, ...]
    declared: InputSpec | None
    identities: int
    images: int

    @property
    def best(self) -> ContractCandidate:
        return self.ranking[0]

    @property
    def separates(self) -> bool:
        """Whether any candidate tells these people apart."""
        return self.best.d_prime >= SEPARATES

    @property
    def right(self) -> bool | None:
        """Whether the declared contract is the best or ties with it; None where nothing is known."""
        if self.declared is None or not self.separates:
            return None
        return any(c.tied and like(c.spec, self.declared) for c in self._upright())

    @property
    def verdict(self) -> str:
        best, rivals = self.best, [c for c in self._upright() if c.tied][1:]
        if not self.separates:
            return (
                f"nothing separates these people (best d' {best.d_prime:.2f}): the faces are not"
                " aligned, the labels are wrong, or the network recognises none"
            )
        names = " or ".join(_told(c) for c in [best, *rivals])
        said = f"trained with {names}"
        if rivals:
            said += f": a tie, d' {best.d_prime:.2f}, the faces cannot tell them apart"
        if best.view not in ("upright", "mirrored"):
            said += f"; the faces are {best.view}"
        if self.right is False and self.declared:
            said += f"; the declared contract ({self.declared.describe()}) is wrong"
        return said

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "right": self.right,
            "separates": self.separates,
            "declared": self.declared.to_json() if self.declared else None,
            "identities": self.identities,
            "images": self.images,
            "ranking": [candidate.to_json() for candidate in self.ranking],
        }

    def _upright(self) -> list[ContractCandidate]:
        return [c for c in self.ranking if c.view == self.best.view]


def like(a: InputSpec, b: InputSpec) -> bool:
    """Whether two contracts make the same input of a face."""
    return replace(a, l2_normalised=False) == replace(b, l2_normalised=False)


def _told(candidate: ContractCandidate) -> str:
    if candidate.name in PRESETS and candidate.spec.channels == "RGB":
        return f"--preset {candidate.name} ({candidate.spec.describe()})"
    return candidate.spec.describe()


# Finds the input contract that a network was trained with, from faces of known identity.
#
# The likely ways to make a face an input are tried; the right one separates genuine from impostor
# scores best. Two that differ less than chance, or than anyone would notice, are called a tie.

SCALES: dict[str, tuple[Triple, Triple]] = {
    "insightface": (PRESETS["insightface"].mean, PRESETS["insightface"].std),
    "raw": (PRESETS["raw"].mean, PRESETS["raw"].std),
    "127.5/128": ((127.5,) * 3, (128.0,) * 3),
    "/255": ((0.0,) * 3, (255.0,) * 3),
    "imagenet": (PRESETS["imagenet"].mean, PRESETS["imagenet"].std),
}
"""Mean and std of pixels 0..255, the more usual first: of several that tie, the first is named."""

VIEWS: dict[str, Callable[[U8], U8]] = {
    "upright": lambda faces: faces,
    "mirrored": lambda faces: faces[:, :, ::-1],
    "upside down": lambda faces: faces[:, ::-1],
    "rows and columns swapped": lambda faces: faces.transpose(0, 2, 1, 3),
    "channels last read as channels first": lambda faces: (
        np.ascontiguousarray(faces).reshape(-1, 3, ALIGNED_SIZE, ALIGNED_SIZE).transpose(0, 2, 3, 1)
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
    sums: PairSums


def find_preprocessing(
    source: str | Path, faces: Faces, *, limit: int = 160, track: Track = silent
) -> PreprocessingResult:
    """Diagnose a bundle's `model.onnx` or somebody's ONNX file; see `diagnose_embedder`.

    Raises BundleError and ModelError for a source that cannot be used.
    """
    source = Path(source)
    bundle = open_bundle(source) if source.is_dir() else None
    model = tidy(read_onnx(bundle.file("model.onnx") if bundle else source))
    face = image_input(model)
    size = (face.height or ALIGNED_SIZE, face.width or ALIGNED_SIZE)
    declared = bundle.spec if bundle else contract_of(model)
    embed = onnx_embedder(model.SerializeToString())
    return find_preprocessing_of(embed, size, faces, declared, limit=limit, track=track)


def find_preprocessing_of(
    embed: Embed,
    size: tuple[int, int],
    faces: Faces,
    declared: InputSpec | None = None,
    *,
    limit: int = 160,
    track: Track = silent,
) -> PreprocessingResult:
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
    wrong_way = view != "mirrored" and d_prime_lead(max(turned, key=_score).sums, best.sums)[0] > 0
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
    return PreprocessingResult(_ranking(running, rest), declared, len(set(labels)), len(images))


def _score(trial: _Trial) -> float:
    return d_prime(trial.sums)


def _ranking(running: list[_Trial], rest: list[_Trial]) -> tuple[ContractCandidate, ...]:
    """Best first, and of those that tie with the best the most usual first."""
    first = max(running, key=_score)

    def ties(trial: _Trial) -> bool:
        gap = _score(first) - _score(trial)
        return gap <= SAME * abs(_score(first)) or d_prime_lead(first.sums, trial.sums)[0] <= 0

    tied = [trial for trial in running if ties(trial)]
    others = sorted((t for t in [*running, *rest] if t not in tied), key=_score, reverse=True)
    return tuple(
        ContractCandidate(trial.name, trial.spec, trial.view, _score(trial), trial in tied)
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
