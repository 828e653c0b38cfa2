"""What is wrong with training data, as the teacher sees it, before the training.

Images that could not be read for the teacher are left out. Others are looked at only where asked for:
each image's embedding is compared with the mean of its person's other images, and with the means of all
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
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ..arrays import I64
from ..documents import encode_json
from ..errors import FacesError, MachineError
from ..faces.sources import Faces
from ..files import write_atomic
from ..reading import read_file
from .dataset import IdentitySplit
from .distributed import Ranks
from .recipe import Recipe
from .teacher_targets import TeacherEmbeddings, unembedded

logger = logging.getLogger(__name__)

_STRANGER_SHARE = 0.01  # of strangers who lie nearer than the limit of outliers
_STRANGERS = 100_000  # cosines of strangers that are drawn
_DUPLICATE_COSINE = 0.99  # of two files of one photograph, cut and compressed alike
_ROWS = 4096  # embeddings in memory at once, as float32
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
    readable = torch.zeros(count, dtype=torch.bool)
    sums = torch.zeros(split.classes, embeddings.dim)
    for part, rows in _blocks(embeddings, _ROWS):
        readable[part] = rows.norm(dim=1) > 0.5
        sums.index_add_(0, labels[part], rows)
    people = torch.bincount(labels[readable], minlength=split.classes)
    suspects = [Suspect(int(i), "unreadable") for i in (~readable).nonzero()[:, 0]]
    alone = readable & (people[labels] == 1)
    suspects += [Suspect(int(i), "singleton") for i in alone.nonzero()[:, 0]]
    own = torch.zeros(count)
    for part, rows in _blocks(embeddings, _ROWS):
        others = functional.normalize(sums[labels[part]] - rows, dim=1, eps=_EPS)
        own[part] = (others * rows).sum(1)
    means = sums.div_(sums.norm(dim=1, keepdim=True).clamp_min(_EPS))
    compared = readable & ~alone
    limit, typical = _stranger_limit(embeddings, means, labels, seed), None
    if bool(compared.any()):
        typical = float(own[compared].median())
        outliers = (compared & (own <= limit)).nonzero()[:, 0]
        suspects += [Suspect(int(i), "outlier", float(own[i])) for i in outliers]
        nearest, cosine = _nearest_other(embeddings, means, labels, device)
        suspects += _of_others(embeddings, labels, readable, own, nearest, cosine, typical)
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


def report_data(
    recipe: Recipe,
    embeddings: TeacherEmbeddings | None,
    split: IdentitySplit,
    faces: Faces,
    ranks: Ranks,
) -> None:
    """Write the report that a recipe asks for, and say what it found.

    Args:
        recipe: Its `data_report` and seed.
        embeddings: The teacher's; None counts alone.
        split: The training images.
        faces: Their source.
        ranks: The processes; one of them calls.
    """
    if embeddings is None:
        report, suspects = count_data(split)
    else:
        report, suspects = examine_data(embeddings, split, ranks.device, recipe.seed)
    folder = Path(recipe.data_report)
    write_data_report(folder, report, suspects, faces.keys, split.train)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in report.suspects.items() if count)
    logger.info("%s: %s", folder / "suspects.csv", counts or "no suspects")


def leave_out_unreadable(
    recipe: Recipe,
    faces: Faces,
    split: IdentitySplit,
    embeddings: TeacherEmbeddings,
    file: Path,
    ranks: Ranks,
) -> IdentitySplit:
    """Leave out the images that could not be read for the teacher: read later, they lack a target.

    Every rank makes this call, and leaves out what rank 0 found.

    Args:
        recipe: Its `bad_images`, and `exclude`.
        faces: The source.
        split: Its classes.
        embeddings: The teacher's, of all training images; zeros for unreadable ones.
        file: Where there are too many such images, it lists them, after the ones that `exclude` lists.
        ranks: The processes.

    Returns:
        The same classes; `kept` is without these images.

    Raises:
        FacesError: They are more than `bad_images`, or leave less than a batch.
        MachineError: The list cannot be written.
    """
    flags = torch.zeros(len(split.train), dtype=torch.uint8)
    if ranks.rank == 0:
        flags[torch.from_numpy(unembedded(embeddings.cached))] = 1
    missing = ranks.all_max(flags.to(ranks.device)).cpu().numpy().astype(bool)[split.kept]
    bad, kept = split.kept[missing], split.kept[~missing]
    if not len(bad):
        return split
    if len(bad) > recipe.bad_images or len(kept) < recipe.batch:
        if ranks.rank == 0:
            _write_exclusions(file, recipe, faces.keys, split.train[bad])
        ranks.barrier()  # who fails ends the others
        names = ", ".join(faces.keys[int(index)] for index in split.train[bad[:3]])
        raise FacesError(
            f"{len(bad):,} image{'s' * (len(bad) > 1)} of {faces.where} cannot be read: {names}",
            f"--set exclude={file} leaves them out and keeps the teacher's embeddings, which are"
            " computed anew where files are removed; or skip up to N bad ones with"
            f" --set bad_images=N (now {recipe.bad_images})",
        )
    if ranks.rank == 0:
        logger.warning(
            "%d of at most %d unreadable images are left out", len(bad), recipe.bad_images
        )
    return replace(split, kept=kept)


def _write_exclusions(file: Path, recipe: Recipe, keys: Sequence[str], images: I64) -> None:
    """Write the recipe's list of exclusions with more images, indices into the source's."""
    excluded = np.zeros(len(keys), bool)
    if recipe.exclude:
        excluded = read_exclusions(Path(recipe.exclude), keys)
    text = io.StringIO(newline="")
    names = [keys[k] for k in (*np.flatnonzero(excluded), *images[~excluded[images]])]
    csv.writer(text).writerows([("image",), *((name,) for name in names)])
    try:
        write_atomic(file, text.getvalue().encode(), private=True)
    except OSError as error:
        raise MachineError(
            f"the list of unreadable images cannot be written to {file}: {error}",
            "--set cache=FOLDER",
        ) from error


def _per_identity(labels: I64) -> tuple[int, float, int]:
    counts = np.bincount(labels)
    return int(counts.min()), float(np.median(counts)), int(counts.max())


def _rows(embeddings: TeacherEmbeddings, images: Tensor | slice) -> Tensor:
    picks = images if isinstance(images, slice) else images.numpy()
    return torch.from_numpy(embeddings.rows(picks))


def _blocks(embeddings: TeacherEmbeddings, size: int) -> Iterator[tuple[slice, Tensor]]:
    """The mean targets of all images, some after the others: together they may not fit into memory."""
    for start in range(0, len(embeddings.cached), size):
        part = slice(start, start + size)
        yield part, _rows(embeddings, part)


def _stranger_limit(
    embeddings: TeacherEmbeddings, means: Tensor, labels: Tensor, seed: int
) -> float:
    """The cosine to another person's mean that a hundredth of random images exceeds."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, len(labels), (_STRANGERS,), generator=draw)
    person = (labels[image] + torch.randint(1, len(means), (_STRANGERS,), generator=draw)) % len(
        means
    )
    cosine = torch.cat(
        [
            (_rows(embeddings, i) * means[p]).sum(1)
            for i, p in zip(torch.split(image, _ROWS), torch.split(person, _ROWS), strict=True)
        ]
    )
    return float(np.quantile(cosine.numpy(), 1 - _STRANGER_SHARE))


def _nearest_other(
    embeddings: TeacherEmbeddings, means: Tensor, labels: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The person other than its own to whom each image is nearest, and the cosine, `(N,)` each."""
    means = means.to(device)
    nearest, best = [], []
    for part, rows in _blocks(embeddings, min(_ROWS, max(1, _CHUNK // len(means)))):
        cosine = rows.to(device) @ means.T
        cosine[torch.arange(len(rows)), labels[part]] = -torch.inf
        value, person = cosine.max(1)
        nearest.append(person.cpu())
        best.append(value.cpu())
    return torch.cat(nearest), torch.cat(best)


def _of_others(
    embeddings: TeacherEmbeddings,
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
        row = _rows(embeddings, slice(image, image + 1))[0]
        value, at = (_rows(embeddings, images) @ row).max(0)
        if value >= _DUPLICATE_COSINE:
            duplicates.append(Suspect(image, "duplicate", float(value), int(images[at])))
    yield from duplicates
