"""The work that a benchmark repeats: batches of golden faces into the sessions of an engine.

Several different batches take turns, so that nothing can be cached from run to run, and each result
is compared with the embeddings of that very batch from before the runs.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ...arrays import F32, I64, U8
from ...bundle.golden import read_golden
from ...bundle.manifest import Bundle
from ...faces.contract import preprocess
from ...faces.images import decode_image
from ...metrics.verification import cosines
from ..evaluation.embeddings_file import check_embeddings
from ..machine.device import cores
from ..onnxruntime_session import ONNXRUNTIME
from ..session import Session, open_session
from .setting import Setting

_BATCHES = 8  # different batches that take turns
_JPEG_QUALITY = 95

Embedder = Callable[[Any], F32]  # a session's `embed` or `embed_tensor`
BatchSource = Callable[[], Any]  # gives an embedder's input


class Workload:
    """One setting's work: `run(i)` embeds the i-th batch, `check(i)` compares the result.

    With several embedders a run is one batch in each of them at the same time, and ends with the
    last (MLPerf's MultiStream scenario).

    Attributes:
        min_cosine: The lowest cosine so far of an embedding with the expected one of its batch; -1
            where one is missing or not finite.
    """

    def __init__(
        self,
        embedders: Sequence[Embedder],
        batches: Sequence[BatchSource],
        expected: Sequence[F32],
    ) -> None:
        self.min_cosine = 1.0
        self._embedders, self._batches, self._expected = embedders, batches, expected
        self._pool = ThreadPoolExecutor(len(embedders)) if len(embedders) > 1 else None
        self._last: list[F32] = []

    def run(self, index: int) -> None:
        """Embed the batch of that turn in every stream."""
        if self._pool is None:
            self._last = [self._embed(index, 0)]
        else:
            streams = range(len(self._embedders))
            self._last = list(self._pool.map(partial(self._embed, index), streams))

    def check(self, index: int) -> None:
        """Compare what the last run, of that index, gave with the embeddings of its batch."""
        for stream, embeddings in enumerate(self._last):
            expected = self._expected[(index + stream) % len(self._batches)]
            if not np.array_equal(embeddings, expected):  # equal is the usual case, and cheap
                self.min_cosine = min(self.min_cosine, _lowest_cosine(embeddings, expected))

    def close(self) -> None:
        """End the streams' threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _embed(self, index: int, stream: int) -> F32:
        batch = self._batches[(index + stream) % len(self._batches)]
        return self._embedders[stream](batch())


class EngineUnderTest:
    """An engine's sessions, opened when first needed, and the golden faces that go into them.

    Attributes:
        first: Its session with the default setting.
        golden: The bundle's golden faces.
        embeddings: The engine's embeddings of them, `(K, D) float32`.
        faces: What is timed: the golden faces; of a single one its mirror image too, so that
            batches differ.
        end_to_end: Whether a run begins with JPEG bytes.
    """

    def __init__(self, bundle: Bundle, engine: str, backend: str, *, end_to_end: bool) -> None:
        """Open the engine and embed the golden faces.

        Args:
            bundle: An open bundle with golden faces.
            engine: As `open_session` takes it.
            backend: As `open_session` takes it.
            end_to_end: Whether a run begins with JPEG bytes instead of the network's input.

        Raises:
            ModelError: An embedding is zero or not finite.
            FrEdgeError: As `open_session`.
        """
        self._bundle, self._engine, self._backend = bundle, engine, backend
        self.golden, self.end_to_end = read_golden(bundle), end_to_end
        self.first = open_session(bundle, engine, backend)
        self._sessions: dict[int | None, list[Session]] = {None: [self.first]}
        self.embeddings = self.first.embed(self.golden.faces)
        name = f"the {self.first.precision} {self.first.artifact}"
        check_embeddings(self.embeddings, self.golden.keys, name)
        self.faces, self._expected = self.golden.faces, self.embeddings
        if len(self.faces) == 1:
            self.faces = np.concatenate([self.faces, self.faces[:, :, ::-1]])
            self._expected = self.first.embed(self.faces)
        self._files = as_jpegs(self.faces) if end_to_end else []
        if end_to_end:  # JPEG loses a little
            self._expected = self.first.embed(_decode(self._files))

    @property
    def on_cpu(self) -> bool:
        return self.first.backend == ONNXRUNTIME

    def session(self, setting: Setting) -> Session:
        """The first of the setting's sessions."""
        return self._open(setting)[0]

    def workload(self, setting: Setting) -> Workload:
        """The work of one setting, with its sessions open."""
        sessions, size = self._open(setting), setting.batch
        expected = [self._expected[pick] for pick in turns(len(self._expected), size)]
        if self.end_to_end:
            batches = encoded_batches(self._files, size)
        elif self.first.uint8_input:
            batches = ready_batches(self.faces, size)
        else:
            batches = ready_batches(preprocess(self.faces, self._bundle.spec), size)
        pixels = self.end_to_end or self.first.uint8_input
        embedders = [session.embed if pixels else session.embed_tensor for session in sessions]
        return Workload(embedders, batches, expected)

    def _open(self, setting: Setting) -> list[Session]:
        threads = setting.threads
        if threads is None and setting.streams > 1 and self.on_cpu:
            threads = max(1, cores() // setting.streams)  # else the streams compete for cores
        sessions = self._sessions.setdefault(threads, [])
        while len(sessions) < setting.streams:
            session = open_session(self._bundle, self._engine, self._backend, threads=threads)
            sessions.append(session)
        return sessions[: setting.streams]


def _lowest_cosine(embeddings: F32, expected: F32) -> float:
    if embeddings.shape != expected.shape or not np.isfinite(embeddings).all():
        return -1.0
    return float(cosines(embeddings, expected).min())


def turns(count: int, size: int) -> list[I64]:
    """Which faces are in each batch.

    Args:
        count: Faces to choose from.
        size: Faces in a batch.

    Returns:
        For each batch the indices `(size,) int64` of its faces.
    """
    return [(np.arange(size) + shift) % count for shift in range(_BATCHES)]


def ready_batches(inputs: F32 | U8, size: int) -> list[BatchSource]:
    """Batches that are in memory before the clock starts.

    Args:
        inputs: `(K, 3, H, W) float32` preprocessed faces or `(K, H, W, 3) uint8` images.
        size: Faces in a batch.
    """
    made = [np.ascontiguousarray(inputs[pick]) for pick in turns(len(inputs), size)]
    return [partial(_same, batch) for batch in made]


def encoded_batches(files: Sequence[bytes], size: int) -> list[BatchSource]:
    """Batches that are decoded while the clock runs.

    Args:
        files: JPEG files of aligned faces.
        size: Faces in a batch.
    """
    return [partial(_decode, [files[i] for i in pick]) for pick in turns(len(files), size)]


def as_jpegs(faces: U8) -> list[bytes]:
    """Faces as files, as a camera's or a database's crops are kept.

    Args:
        faces: `(K, 112, 112, 3) uint8`, RGB.
    """
    return [_jpeg(face) for face in faces]


def _jpeg(face: U8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(face).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def _decode(files: Sequence[bytes]) -> U8:
    return np.stack([decode_image(data, "golden face") for data in files])


def _same(batch: Any) -> Any:
    return batch
