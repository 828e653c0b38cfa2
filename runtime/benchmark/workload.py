"""What a benchmark does over and over: batches of golden faces into sessions, and a look at what
came out.

Several different batches take turns, so that nothing can be remembered from run to run.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...arrays import F32
from ...bundle.golden import read_golden
from ...bundle.manifest import Bundle
from ...errors import UsageError
from ...faces.contract import InputSpec, preprocess
from ...faces.images import decode_image
from ...metrics.verification import cosines
from ..evaluation.embeddings_file import check_embeddings
from ..machine.device import cores
from ..onnxruntime_session import ONNXRUNTIME as CPU
from ..session import Session, open_session
from .setting import Setting

_BATCHES = 8

_SAMPLE = 16
"""One run in so many is compared with what was embedded before."""

_QUALITY = 95


class Workload:
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
        return self._sessions[stream].embed_tensor(
            self._batches[(index + stream) % len(self._batches)]()
        )


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
    return preprocess(np.stack([decode_image(data, "golden face") for data in files]), spec)


def _same(batch: F32) -> F32:
    return batch


# What is measured: an engine's sessions, and the golden faces that go into them.

AUTO = (1, 2, 4, 8, 16, 32)


class EngineUnderTest:
    """Opens each session once, when it is first needed. Raises as `open_session`."""

    def __init__(self, bundle: Bundle, engine: str, backend: str, *, end_to_end: bool) -> None:
        self.spec = bundle.spec
        self._bundle, self._engine, self._backend = bundle, engine, backend
        self.on_cpu = True  # until a session says otherwise
        self._sessions: dict[int | None, list[Session]] = {}
        self.golden = read_golden(bundle)
        self._inputs = preprocess(self.golden.faces, bundle.spec)
        self._files = as_jpegs(self.golden.faces) if end_to_end else []
        session = self.session(Setting())
        self.engine, self.backend = session.precision, session.backend
        self.on_cpu = session.backend == CPU
        self.embeddings = session.embed(self.golden.faces)
        check_embeddings(self.embeddings, self.golden.keys, f"the {session.precision} engine")
        self._expected = self.embeddings
        if end_to_end:  # JPEG loses a little
            self._expected = session.embed_tensor(decoded(self._files, bundle.spec))

    def session(self, setting: Setting) -> Session:
        return self._open(setting)[0]

    def settings(
        self,
        batches: Sequence[int] | None,
        threads: Sequence[int],
        streams: Sequence[int],
        rates: Sequence[int] = (),
    ) -> Iterator[Setting]:
        """All of them, or for None the sizes of `AUTO` that the engine takes.

        Raises UsageError for a batch that it does not take.
        """
        most = self.session(Setting()).largest_batch
        if batches is None:
            batches = [size for size in AUTO if most is None or size <= most]
        elif most is not None and max(batches) > most:
            raise UsageError(
                f"a batch of {max(batches)} is beyond the engine's profile, it takes up to {most}",
                "a smaller --batch, or build the engine again with a larger one",
            )
        for count in threads or (None,):
            for number in streams:
                for size in batches:
                    for rate in rates or (None,):
                        yield Setting(size, count, number, rate)

    def work(self, setting: Setting) -> Workload:
        spec, size = self.spec, setting.batch
        batches = (
            encoded_batches(self._files, spec, size)
            if self._files
            else ready_batches(self._inputs, size)
        )
        expected = [self._expected[pick] for pick in turns(len(self._inputs), size)]
        return Workload(self._open(setting), batches, expected)

    def _open(self, setting: Setting) -> list[Session]:
        threads = setting.threads
        if threads is None and setting.streams > 1 and self.on_cpu:
            threads = max(1, cores() // setting.streams)  # else they stand in each other's way
        opened = self._sessions.setdefault(threads, [])
        while len(opened) < setting.streams:
            opened.append(open_session(self._bundle, self._engine, self._backend, threads=threads))
        return opened[: setting.streams]
