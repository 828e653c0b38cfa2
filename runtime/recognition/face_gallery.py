"""Enrolled people: enrol, identify, remove; one file that belongs to one network.

Search is by brute force: every enrolled face is compared. Embeddings of another network mean nothing
to this one, so a gallery knows what made its embeddings and is refused by everything else;
`gallery_migration.py` says whether they may stay.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...arrays import F32, I64, U8
from ...errors import FacesError, UsageError
from ...metrics.identification import nearest, threshold_at_fpir
from ...metrics.verification import far_name, normalise
from .gallery_file import (
    GalleryContent,
    GalleryModel,
    check_name,
    model_difference,
    read_gallery,
    write_gallery,
)

_FIRST_ROWS = 64  # that a gallery has room for; doubled when they are full


@dataclass(frozen=True)
class Match:
    """A person of the gallery.

    Attributes:
        name: As it was enrolled.
        similarity: The highest cosine of the person's faces with the probe.
    """

    name: str
    similarity: float


@dataclass(frozen=True)
class _Rows:
    """The enrolled faces at one moment; the first `count` entries never change.

    `origin` is which of the gallery's models made a row: 0 its own, others are kept for a while.
    """

    embeddings: F32
    names: list[str]
    origin: U8
    count: int
    faces: Counter[str]  # of each person; grows with the rows
    most: int  # of one person


class Gallery:
    """People and their embeddings; threads may search it while another one changes it.

    Args:
        model: What makes the embeddings: `Recogniser.model`.
    """

    def __init__(self, model: GalleryModel) -> None:
        self._models: tuple[GalleryModel, ...] = (model,)
        self._lock = threading.Lock()
        self._rows = _empty(model.dim)

    @property
    def model(self) -> GalleryModel:
        """What makes the embeddings that are enrolled now."""
        return self._models[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The people, in the order in which they were enrolled."""
        rows = self._rows
        return tuple(dict.fromkeys(rows.names[: rows.count]))

    @property
    def kept(self) -> tuple[str, ...]:
        """The people whose embeddings are still those of another model, after a migration."""
        rows = self._rows
        indices = np.flatnonzero(rows.origin[: rows.count])
        return tuple(dict.fromkeys(rows.names[index] for index in indices))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def faces(self) -> tuple[tuple[str, ...], F32]:
        """All enrolled faces.

        Returns:
            The name of each, and their embeddings `(N, D) float32` of unit length, not to be changed.
        """
        rows = self._rows
        return tuple(rows.names[: rows.count]), rows.embeddings[: rows.count]

    def enrol(self, name: str, embeddings: F32) -> None:
        """Add faces of one person; a kept embedding of another model makes room for them.

        Args:
            name: The person.
            embeddings: One `(D,)` or several `(K, D) float32`, of any length.

        Raises:
            UsageError: No name, or embeddings of another shape.
            FacesError: An embedding is zero or not finite.
        """
        several = embeddings[None] if np.ndim(embeddings) == 1 else embeddings
        self.enrol_many([name] * len(several), several)

    def enrol_many(self, names: Sequence[str], embeddings: F32) -> None:
        """Add faces of many people at once.

        Args:
            names: The person of each face, N of them.
            embeddings: `(N, D) float32`, of any length.

        Raises:
            UsageError: No name, or embeddings of another shape.
            FacesError: An embedding is zero or not finite.
        """
        unit = _checked(embeddings, self.model.dim)
        if len(names) != len(unit):
            raise UsageError(f"{len(unit)} embeddings and {len(names)} names, expected as many")
        for name in dict.fromkeys(names):
            check_name(name)
        with self._lock:
            rows = self._rows
            if len(self._models) > 1:
                again = set(names)
                origins = rows.origin[: rows.count]
                stays = [not (o and n in again) for n, o in zip(rows.names, origins, strict=False)]
                rows = _picked(rows, np.flatnonzero(stays))
            self._rows = _appended(rows, list(names), unit)

    def remove(self, name: str) -> int:
        """Remove a person.

        Args:
            name: As it was enrolled.

        Returns:
            How many faces were removed.

        Raises:
            UsageError: There is no such person.
        """
        with self._lock:
            rows = self._rows
            stays = [other != name for other in rows.names[: rows.count]]
            removed = len(stays) - sum(stays)
            if not removed:
                raise UsageError("the gallery has no such person", "`names` lists them")
            self._rows = _picked(rows, np.flatnonzero(stays))
            return removed

    def identify(self, embedding: F32, threshold: float, rank: int = 1) -> tuple[Match, ...]:
        """The people who are most like a face.

        Args:
            embedding: `(D,) float32`, of any length.
            threshold: Cosine from which a person is named: that of `threshold_at_fpir`; -1 names
                the nearest ones, strangers or not.
            rank: How many people at most.

        Returns:
            The most similar first; empty for a stranger.

        Raises:
            UsageError: An embedding of another shape, a threshold that no cosine is.
            FacesError: It is zero or not finite.
        """
        if np.ndim(embedding) != 1:
            raise UsageError(
                f"expected one embedding ({self.model.dim},), found {np.shape(embedding)}",
                "`search` takes several",
            )
        return self.search(embedding[None], threshold, rank)[0]

    def search(
        self, embeddings: F32, threshold: float, rank: int = 1
    ) -> tuple[tuple[Match, ...], ...]:
        """The people who are most like each of several faces.

        Args:
            embeddings: `(P, D) float32`, of any length.
            threshold: As `identify` takes it.
            rank: How many people at most for each face.

        Returns:
            One tuple per face, the most similar person first.

        Raises:
            UsageError: Embeddings of another shape, a threshold that no cosine is.
            FacesError: One is zero or not finite.
        """
        if not -1 <= threshold <= 1 or rank < 1:
            raise UsageError(
                f"threshold {threshold} and rank {rank}, expected a cosine and 1 or more people"
            )
        probes, rows = _checked(embeddings, self.model.dim), self._rows
        wanted = 1 if rank == 1 else rank * rows.most  # faces that hold as many people
        cosine, index = nearest(probes, rows.embeddings[: rows.count], wanted)
        matches: list[tuple[Match, ...]] = []
        for scores, places in zip(cosine, index, strict=True):
            best: dict[str, float] = {}
            for score, place in zip(scores[scores >= threshold], places, strict=False):
                best.setdefault(rows.names[place], float(score))
            matches.append(tuple(Match(name, score) for name, score in list(best.items())[:rank]))
        return tuple(matches)

    def threshold_at_fpir(self, strangers: F32, fpir: float) -> float:
        """The threshold at which no more than a share of strangers is taken for somebody here.

        It holds for this gallery: with more people enrolled it has to be higher.

        Args:
            strangers: Embeddings `(S, D) float32` of people who are not enrolled.
            fpir: False positive identification rate, 0 to 1.

        Raises:
            UsageError: Embeddings of another shape, or a rate that is not between 0 and 1.
            FacesError: The strangers are too few to show this rate, or the gallery is empty.
        """
        if not 0 < fpir < 1:
            raise UsageError(f"FPIR {fpir}, expected a share of strangers above 0 and below 1")
        probes, rows = _checked(strangers, self.model.dim), self._rows
        if not rows.count:
            raise FacesError("the gallery is empty", "enrol people first")
        cosine = nearest(probes, rows.embeddings[: rows.count], 1)[0]
        threshold = threshold_at_fpir(cosine[:, 0], fpir)
        if threshold is None:
            raise FacesError(
                f"{len(probes)} strangers do not show FPIR {far_name(fpir)}",
                f"give {int(np.ceil(1 / fpir))} or more, or a larger rate",
            )
        return threshold

    def save(self, path: str | Path) -> None:
        """Write the gallery into one file, atomically; readable by this user alone (mode 0600).

        Args:
            path: The file; its folder is made if need be.
        """
        rows = self._rows
        names, origin = rows.names[: rows.count], rows.origin[: rows.count]
        content = GalleryContent(rows.embeddings[: rows.count], names, origin, self._models)
        write_gallery(Path(path), content)

    @classmethod
    def load(cls, path: str | Path, model: GalleryModel) -> "Gallery":
        """Read a gallery that was made by a model.

        Args:
            path: A file of `save`.
            model: What will make the probes: `Recogniser.model`.

        Raises:
            FacesError: The file cannot be read, is damaged, or is of another model.
        """
        content = read_gallery(Path(path))
        if problem := model_difference(content.models[0], model):
            raise FacesError(
                f"{path} is a gallery of another model: {problem}",
                "`migrate_gallery` says whether its people can stay; else enrol them again",
            )
        return cls.of_content(content)

    @classmethod
    def of_content(cls, content: GalleryContent) -> "Gallery":
        """The gallery that a file holds, of any model.

        Args:
            content: What `read_gallery` read.
        """
        gallery = cls(content.models[0])
        gallery._models = content.models
        counts = Counter(content.names)
        count = len(content.names)
        gallery._rows = _Rows(
            content.embeddings, list(content.names), content.origin, count, counts, _most(counts)
        )
        return gallery

    def with_model(self, model: GalleryModel) -> "Gallery":
        """A copy whose faces are kept until their people enrol again with another model.

        Args:
            model: What makes the probes from now on.

        Raises:
            FacesError: The embeddings have another size, or already are of two models.
        """
        rows = self._rows
        if self.kept or model.dim != self.model.dim:
            raise FacesError(
                f"a gallery of {' and '.join(m.describe() for m in self._models)} cannot be kept for"
                f" {model.describe()}",
                "enrol the people again",
            )
        gallery = Gallery(model)
        gallery._models = (model, self.model)
        origin = np.ones(rows.count, np.uint8)
        gallery._rows = replace(_picked(rows, np.arange(rows.count)), origin=origin)
        return gallery


def _checked(embeddings: F32, dim: int) -> F32:
    """Embeddings of unit length; raises for what cannot be compared."""
    if not isinstance(embeddings, np.ndarray) or embeddings.shape[1:] != (dim,):
        raise UsageError(
            f"expected embeddings (N, {dim}) float32, found {np.shape(embeddings)}",
            "`Recogniser.embed` makes them",
        )
    if embeddings.dtype.kind != "f":
        raise UsageError(f"expected embeddings in float32, found {embeddings.dtype}")
    if not (np.isfinite(embeddings).all() and embeddings.any(axis=1).all()):
        raise FacesError("an embedding is zero or not finite", "the network or its file is damaged")
    return normalise(embeddings)


def _empty(dim: int) -> _Rows:
    embeddings, origin = np.empty((_FIRST_ROWS, dim), np.float32), np.empty(_FIRST_ROWS, np.uint8)
    return _Rows(embeddings, [], origin, 0, Counter(), 0)


def _most(faces: Counter[str]) -> int:
    return max(faces.values(), default=0)


def _picked(rows: _Rows, indices: I64) -> _Rows:
    names = [rows.names[index] for index in indices]
    faces = Counter(names)
    origin = rows.origin[indices]
    return _Rows(rows.embeddings[indices], names, origin, len(names), faces, _most(faces))


def _appended(rows: _Rows, names: list[str], embeddings: F32) -> _Rows:
    """More rows; those who search `rows` meanwhile see its first `count` entries, unchanged."""
    count = rows.count + len(names)
    buffer, origin = rows.embeddings, rows.origin
    if count > len(buffer):
        room = max(_FIRST_ROWS, count, 2 * rows.count)
        buffer, origin = np.empty((room, buffer.shape[1]), np.float32), np.empty(room, np.uint8)
        buffer[: rows.count] = rows.embeddings[: rows.count]
        origin[: rows.count] = rows.origin[: rows.count]
    buffer[rows.count : count] = embeddings
    origin[rows.count : count] = 0
    rows.names.extend(names)
    rows.faces.update(names)
    most = max((rows.faces[name] for name in names), default=0)
    return _Rows(buffer, rows.names, origin, count, rows.faces, max(rows.most, most))
