"""What a benchmark does over and over: batches of golden faces into sessions, and a look at what
came out.

Several different batches take turns, so that nothing can be remembered from run to run.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...faces.contract import InputSpec, preprocess
from ...faces.images import decode
from ..accuracy.metrics import cosines
from ..engines.session import Session

F32 = npt.NDArray[np.float32]

_BATCHES = 8
_SAMPLE = 16
"""One run in so many is compared with what was embedded before."""
_QUALITY = 95


class Work:
    """`run(i)` embeds; `sample(i)` looks at what that gave, and `lowest` is the lowest cosine of an
    embedding with the same face's before the runs.

    With several sessions a run is one batch in each of them at the same time, and ends with the
    last (MLPerf's MultiStream).
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        batches: Sequence[Callable[[], F32]],
        expected: Sequence[F32],
    ) -> None:
        self.lowest = 1.0
        self._sessions, self._batches, self._expected = sessions, batches, expected
        self._pool = ThreadPoolExecutor(len(sessions)) if len(sessions) > 1 else None
        self._last: list[F32] = []

    def run(self, index: int) -> None:
        if self._pool is None:
            self._last = [self._embed(index, 0)]
        else:
            streams = range(len(self._sessions))
            self._last = list(self._pool.map(partial(self._embed, index), streams))

    def sample(self, index: int) -> None:
        if index % _SAMPLE:
            return
        for stream, found in enumerate(self._last):
            expected = self._expected[(index + stream) % len(self._batches)]
            if np.array_equal(found, expected):  # the usual case, and cheap
                continue
            same = cosines(found, expected)
            self.lowest = min(self.lowest, float(np.nan_to_num(same, nan=-1.0).min()))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _embed(self, index: int, stream: int) -> F32:
        return self._sessions[stream].embed(self._batches[(index + stream) % len(self._batches)]())


def turns(count: int, size: int) -> list[npt.NDArray[np.int64]]:
    """Which of `count` faces are in each batch of `size`."""
    return [(np.arange(size) + shift) % count for shift in range(_BATCHES)]


def ready_batches(inputs: F32, size: int) -> list[Callable[[], F32]]:
    """Preprocessed before the clock starts, from `(K, 3, H, W)`."""
    made = [np.ascontiguousarray(inputs[pick]) for pick in turns(len(inputs), size)]
    return [partial(_same, batch) for batch in made]


def encoded_batches(files: Sequence[bytes], spec: InputSpec, size: int) -> list[Callable[[], F32]]:
    """Decoded and preprocessed while the clock runs, from JPEG bytes."""
    return [partial(decoded, [files[i] for i in pick], spec) for pick in turns(len(files), size)]


def as_jpegs(faces: npt.NDArray[np.uint8]) -> list[bytes]:
    """`(K, 112, 112, 3) uint8` -> K files, as a camera's or a database's crops are kept."""
    return [_jpeg(face) for face in faces]


def _jpeg(face: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(face).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def decoded(files: Sequence[bytes], spec: InputSpec) -> F32:
    """Files -> `(N, 3, H, W)`, network input."""
    return preprocess(np.stack([decode(data, "golden face") for data in files]), spec)


def _same(batch: F32) -> F32:
    return batch
