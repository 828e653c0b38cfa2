"""What is wrong with training data, as the teacher sees it: before the training, and only where asked for.

Each image's embedding is compared with the mean of its person's other images, and with the means of all
other people. Limits are the data's own: a stranger's cosine is that of an image to the mean of another
person, drawn at random.

- "unreadable": the image could not be decoded.
- "singleton": its person has no other image.
- "outlier": no nearer to its person's others than the nearest hundredth of strangers.
- "other person": nearer to another person's mean than to its own, and as near as half of all images are
  to their own.
- "duplicate": almost the same embedding as an image of another person.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ..arrays import I64
from ..documents import encode_json
from ..errors import FacesError, MachineError
from ..files import write_atomic
from ..reading import read_file
from .dataset import IdentitySplit
from .teacher_targets import TeacherEmbeddings

_STRANGER_SHARE = 0.01  # of strangers who lie nearer than the limit of outliers
_STRANGERS = 100_000  # cosines of strangers that are drawn
_DUPLICATE_COSINE = 0.99  # of two files of one photograph, cut and compressed alike
_CHUNK = 1 << 24  # cosines computed at once
_EPS = 1e-12  # smallest length to divide by

REASONS = ("unreadable", "singleton", "outlier", "other person", "duplicate")


@dataclass(frozen=True)
class Suspect:
    """An image that may not belong where it is.

    Attributes:
        image: Index among the training images.
        reason: One of `REASONS`.
        cosine: To its person's others for an outlier, to the other person or image else; 0 where
            neither is looked at.
        other: Index of an image of the other person; -1 without one.
    """

    image: int
    reason: str
    cosine: float = 0.0
    other: int = -1


@dataclass(frozen=True)
class DataReport:
    """Counts; names of images are in the list of suspects alone.

    Attributes:
        images: Training images.
        identities: People.
        images_per_identity: Fewest, median and most.
        suspects: Reason -> number of images.
        own_cosine: Median cosine of an image to its person's others; None without a pair of images.
        stranger_cosine: The limit of outliers; None without embeddings.
    """

    images: int
    identities: int
    images_per_identity: tuple[int, float, int]
    suspects: dict[str, int]
    own_cosine: float | None = None
    stranger_cosine: float | None = None


def examine_data(
    embeddings: TeacherEmbeddings, split: IdentitySplit, device: torch.device, seed: int = 0
) -> tuple[DataReport, list[Suspect]]:
    """Look for images that may not belong where they are.

    Args:
        embeddings: The teacher's, of all training images; zeros for unreadable ones.
        split: Their classes.
        device: Where cosines are computed: N images times C people.
        seed: Of the strangers that are drawn.

    Returns:
        The report, and the suspects in the order of `REASONS`, then of the images.
    """
    count, labels = len(split.labels), torch.from_numpy(split.labels)
    rows = torch.from_numpy(embeddings.rows(slice(None)))
    readable = rows.norm(dim=1) > 0.5
    people = torch.bincount(labels[readable], minlength=split.classes)
    suspects = [Suspect(int(i), "unreadable") for i in (~readable).nonzero()[:, 0]]
    alone = readable & (people[labels] == 1)
    suspects += [Suspect(int(i), "singleton") for i in alone.nonzero()[:, 0]]
    sums = torch.zeros(split.classes, rows.shape[1]).index_add_(0, labels, rows)
    others = functional.normalize(sums[labels] - rows, dim=1, eps=_EPS)
    own = (others * rows).sum(1)
    means = functional.normalize(sums, dim=1, eps=_EPS)
    compared = readable & ~alone
    limit, typical = _stranger_limit(rows, means, labels, seed), None
    if bool(compared.any()):
        typical = float(own[compared].median())
        outliers = (compared & (own <= limit)).nonzero()[:, 0]
        suspects += [Suspect(int(i), "outlier", float(own[i])) for i in outliers]
        nearest, cosine = _nearest_other(rows, means, labels, device)
        suspects += _of_others(rows, labels, readable, own, nearest, cosine, typical)
    return (
        DataReport(
            count,
            split.classes,
            _per_identity(split.labels),
            {reason: sum(s.reason == reason for s in suspects) for reason in REASONS},
            typical,
            limit,
        ),
        suspects,
    )


def count_data(split: IdentitySplit) -> tuple[DataReport, list[Suspect]]:
    """The report of data without a teacher: numbers of images alone.

    Args:
        split: The classes.
    """
    people = np.bincount(split.labels)
    alone = np.flatnonzero(people[split.labels] == 1)
    suspects = [Suspect(int(i), "singleton") for i in alone]
    counts = {"singleton": len(suspects)}
    report = DataReport(len(split.labels), split.classes, _per_identity(split.labels), counts)
    return report, suspects


def write_data_report(
    folder: Path, report: DataReport, suspects: Sequence[Suspect], keys: Sequence[str], picks: I64
) -> None:
    """Write `data.json`, without names, and `suspects.csv`, whose lines may stay in an exclusion list.

    Args:
        folder: Made if it does not exist.
        report: The counts.
        suspects: The images.
        keys: Names of the source's images.
        picks: Index into them of each training image, `(N,) int64`.

    Raises:
        MachineError: They cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("image", "reason", "cosine", "other"))
    for s in suspects:
        other = keys[int(picks[s.other])] if s.other >= 0 else ""
        writer.writerow((keys[int(picks[s.image])], s.reason, f"{s.cosine:.3f}", other))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "data.json", encode_json(report))
        write_atomic(folder / "suspects.csv", text.getvalue().encode(), private=True)
    except OSError as error:
        raise MachineError(
            f"the data report cannot be written to {folder}: {error}", "--set data_report=FOLDER"
        ) from error


def read_exclusions(file: Path, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which images a list leaves out: the first column of a CSV file, as `suspects.csv` has it.

    Args:
        file: The list; a first line "image,..." is no image.
        keys: Names of the source's images.

    Returns:
        `(len(keys),) bool`.

    Raises:
        FacesError: The list cannot be read, or names images that the source does not have.
    """
    try:
        text = read_file(file, "LIST_MB", FacesError).decode("utf-8-sig")
        names = {row[0] for row in csv.reader(io.StringIO(text, newline="")) if row}
    except OSError as error:
        raise FacesError(
            f"the exclusion list {file} cannot be read: {error.strerror}", "--set exclude=FILE"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FacesError(f"the exclusion list {file} cannot be read: {error}") from error
    names.discard("image")
    out = np.fromiter((key in names for key in keys), bool, len(keys))
    if int(out.sum()) < len(names):
        missing = sorted(names.difference(keys))
        raise FacesError(
            f"{file} names {len(missing)} images that the faces do not have, for example {missing[0]}",
            "names are relative to the source, as suspects.csv has them",
        )
    return out


def _per_identity(labels: I64) -> tuple[int, float, int]:
    counts = np.bincount(labels)
    return int(counts.min()), float(np.median(counts)), int(counts.max())


def _stranger_limit(rows: Tensor, means: Tensor, labels: Tensor, seed: int) -> float:
    """The cosine to another person's mean that a hundredth of random images exceeds."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, len(rows), (_STRANGERS,), generator=draw)
    person = (labels[image] + torch.randint(1, len(means), (_STRANGERS,), generator=draw)) % len(
        means
    )
    cosine = torch.cat(
        [
            (rows[i] * means[p]).sum(1)
            for i, p in zip(torch.split(image, 4096), torch.split(person, 4096), strict=True)
        ]
    )
    return float(np.quantile(cosine.numpy(), 1 - _STRANGER_SHARE))


def _nearest_other(
    rows: Tensor, means: Tensor, labels: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The person other than its own to whom each image is nearest, and the cosine, `(N,)` each."""
    means = means.to(device)
    nearest, best = [], []
    size = max(1, _CHUNK // len(means))
    for part, own in zip(torch.split(rows, size), torch.split(labels, size), strict=True):
        cosine = part.to(device) @ means.T
        cosine[torch.arange(len(part)), own] = -torch.inf
        value, person = cosine.max(1)
        nearest.append(person.cpu())
        best.append(value.cpu())
    return torch.cat(nearest), torch.cat(best)


def _of_others(
    rows: Tensor,
    labels: Tensor,
    readable: Tensor,
    own: Tensor,
    nearest: Tensor,
    cosine: Tensor,
    typical: float,
) -> Iterator[Suspect]:
    """Images that are near another person: of that person, or the same as one of that person's."""
    near = readable & (cosine > torch.minimum(own, torch.tensor(typical)))
    order = labels.argsort(stable=True)
    starts = torch.searchsorted(labels[order], torch.arange(int(labels.max()) + 2))
    duplicates = []
    for image in near.nonzero()[:, 0].tolist():
        person = int(nearest[image])
        images = order[starts[person] : starts[person + 1]]
        if cosine[image] > own[image] and cosine[image] >= typical:
            yield Suspect(image, "other person", float(cosine[image]), int(images[0]))
        value, at = (rows[images] @ rows[image]).max(0)
        if value >= _DUPLICATE_COSINE:
            duplicates.append(Suspect(image, "duplicate", float(value), int(images[at])))
    yield from duplicates
