"""The statistics of a calibration that was interrupted: a private file beside the bundle, continued.

It holds sums over faces, never an image. It is bound to the network, the tensors and the pixels of
the faces that were counted.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..arrays import read_npz
from ..bundle.manifest import Bundle
from ..errors import DataError
from ..faces.sources import Faces
from ..files import replace_atomic
from ..interruption import Interrupted, StopRequest, deferred_signals
from .covariance import InputCovariance
from .histogram import Histogram, empty_histogram

logger = logging.getLogger(__name__)

_SAVE_S = 20.0  # between two saves; a shorter calibration writes no file

_HISTOGRAM = tuple(field.name for field in fields(Histogram))

_MOMENTS = tuple(field.name for field in fields(InputCovariance))


class StatisticsDraft:
    """Partial statistics of the calibration faces, in memory and in a file beside the bundle.

    Attributes:
        histograms: Tensor -> its values so far; counted into in place.
        moments: Layer -> its input moments so far; added to in place.
        count: Number of faces, of those to be counted, that are in them.
    """

    def __init__(
        self,
        bundle: Bundle,
        picks: Sequence[int],
        tensors: Sequence[str],
        moments: dict[str, InputCovariance],
    ) -> None:
        """Begin without faces.

        Args:
            bundle: Of the network, `model.onnx`.
            picks: Indices of the calibration faces, in the order in which they are read.
            tensors: Names of the tensors whose histograms are kept.
            moments: Layer -> its empty moments.
        """
        self.histograms: dict[str, Histogram] = {}
        self.moments = moments
        self.count = 0
        self._path, self._picks = _place(bundle.root), picks
        sizes = {name: len(part.total) for name, part in moments.items()}
        network = [bundle.files["model.onnx"].sha256, bundle.spec.to_json()]
        inputs = [__version__, network, list(picks), list(tensors), sizes]
        self._key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
        self._used: Sequence[int] = ()
        self._digests: Mapping[int, bytes] = {}
        self._before = 0
        self._stop = StopRequest()
        self._started_s = self._saved_s = time.monotonic()

    @contextmanager
    def collecting(self, used: Sequence[int], digests: Mapping[int, bytes]) -> Iterator[None]:
        """While faces are counted: keep the statistics now and then, and when a signal comes.

        Args:
            used: Indices of the faces that were read and are not blank; grows meanwhile.
            digests: Index of a face -> sha256 of its pixels; grows meanwhile.

        Raises:
            Interrupted: A signal came; it says what is kept.
        """
        self._used, self._digests, self._before = used, digests, self.count
        with deferred_signals() as self._stop:
            yield

    def counted(self, count: int) -> None:
        """Record that the statistics are those of more faces; a moment at which they can be kept.

        Args:
            count: Number of faces that were counted since `collecting` began.

        Raises:
            Interrupted: A signal came; the statistics are kept.
        """
        self.count = self._before + count
        if self._stop.number or time.monotonic() - self._saved_s >= _SAVE_S:
            self._keep()

    def complete(self) -> None:
        """Record that all faces are counted; what follows may take as long again.

        Raises:
            Interrupted: As `counted`.
        """
        self.count = len(self._used)
        if self._stop.number or time.monotonic() - self._started_s >= _SAVE_S / 2:
            self._keep()

    def _keep(self) -> None:
        kept = self._save()
        self._saved_s = time.monotonic()
        if self._stop.number:
            raise Interrupted(self._stop.number, kept)

    def restore(self, faces: Faces, digests: Mapping[int, bytes]) -> None:
        """Take up the statistics of an interrupted calibration, if they are of the same faces.

        Args:
            faces: The source; the faces that were counted are read, to compare their pixels.
            digests: Index of a face that was read -> sha256 of its pixels.

        Raises:
            FacesError: A face cannot be read.
        """
        try:
            names = ("key", "count", "read", "pixels", "tensors", "layers")
            head = read_npz(self._path, names)
            if str(head["key"]) != self._key:
                return
            read = self._picks[: int(head["read"])]
            for index in read:
                faces.read(index)
            if str(head["pixels"]) != _digest(read, digests):
                logger.info("%s is of other faces; it is not used", self._path)
                return
            self._load(head["tensors"].tolist(), head["layers"].tolist())
            self.count = int(head["count"])
        except FileNotFoundError:
            return
        except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError) and type(error) is not DataError:
                raise  # of a face
            logger.info("%s cannot be used: %s", self._path, error)
            return
        logger.info("continued: the statistics of %d faces are in %s", self.count, self._path)

    def _load(self, tensors: Sequence[str], layers: Sequence[str]) -> None:
        """Read the arrays; nothing is changed unless all of them have the expected form."""
        names = [f"h{i}.{field}" for i in range(len(tensors)) for field in _HISTOGRAM]
        names += [f"m{i}.{field}" for i in range(len(layers)) for field in _MOMENTS]
        arrays = read_npz(self._path, names)
        histograms, moments = {}, {}
        for i, tensor in enumerate(tensors):
            parts = {field: arrays[f"h{i}.{field}"] for field in _HISTOGRAM}
            empty = empty_histogram(len(parts["low"]))
            for field, array in parts.items():
                _check_form(array, getattr(empty, field))
            histograms[tensor] = Histogram(**parts)
        for i, layer in enumerate(layers):
            parts = {field: arrays[f"m{i}.{field}"] for field in _MOMENTS}
            for field in ("product", "total"):
                _check_form(parts[field], getattr(self.moments[layer], field))
            moments[layer] = InputCovariance(parts["product"], parts["total"], int(parts["count"]))
        if set(moments) != set(self.moments):
            raise ValueError("it holds the moments of other layers")
        self.histograms.update(histograms)
        self.moments.update(moments)

    def _save(self) -> str:
        """Write the file; says what is kept, "" where it cannot be written."""
        read = self._picks[: self._picks.index(self._used[self.count - 1]) + 1]
        arrays: dict[str, npt.NDArray[Any]] = {
            "key": np.array(self._key),
            "count": np.array(self.count),
            "read": np.array(len(read)),
            "pixels": np.array(_digest(read, self._digests)),
            "tensors": np.array(list(self.histograms)),
            "layers": np.array(list(self.moments), np.str_),
        }
        for i, histogram in enumerate(self.histograms.values()):
            arrays |= {f"h{i}.{field}": getattr(histogram, field) for field in _HISTOGRAM}
        for i, part in enumerate(self.moments.values()):
            arrays |= {f"m{i}.{field}": np.asarray(getattr(part, field)) for field in _MOMENTS}
        try:
            with replace_atomic(self._path, private=True) as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]  # its other option is a bool
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._path, error.strerror)
            return ""
        return f"the statistics of {self.count} faces are in {self._path}"


def kept_statistics(root: Path) -> str:
    """What an interruption after the faces were counted leaves, in words; "" where it is nothing.

    Args:
        root: The bundle's folder.
    """
    path = _place(root)
    return f"the statistics of the faces are in {path}" if path.exists() else ""


def remove_statistics(root: Path) -> None:
    """Remove the file of partial statistics, if there is one: the calibration is complete.

    Args:
        root: The bundle's folder.
    """
    with suppress(OSError):
        _place(root).unlink(missing_ok=True)


def _place(root: Path) -> Path:
    root = root.absolute()  # it may be called `.`
    return root.with_name(f".{root.name}.statistics")


def _digest(read: Sequence[int], digests: Mapping[int, bytes]) -> str:
    return hashlib.sha256(b"".join(digests[index] for index in read)).hexdigest()


def _check_form(array: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    if array.shape != expected.shape or array.dtype != expected.dtype:
        raise ValueError("it holds statistics of another form")
