"""What is measured: an engine's sessions, and the golden faces that go into them."""

from collections.abc import Iterator, Sequence

from ...bundle import Bundle
from ...errors import UsageError
from ...faces.contract import preprocess
from ..accuracy.embeddings import check_embeddings
from ..accuracy.golden import read_golden
from ..engines.cpu import NAME as CPU
from ..engines.session import EngineSession, open_session
from ..machine.device import cores
from .timed_run import Setting
from .work import Work, as_jpegs, decoded, encoded_batches, ready_batches, turns

AUTO = (1, 2, 4, 8, 16, 32)


class Subject:
    """Opens each session once, when it is first needed. Raises as `open_session`."""

    def __init__(self, bundle: Bundle, engine: str, backend: str, *, end_to_end: bool) -> None:
        self.spec = bundle.spec
        self._bundle, self._engine, self._backend = bundle, engine, backend
        self.on_cpu = True  # until a session says otherwise
        self._sessions: dict[int | None, list[EngineSession]] = {}
        self.golden = read_golden(bundle)
        self._inputs = preprocess(self.golden.faces, bundle.spec)
        self._files = as_jpegs(self.golden.faces) if end_to_end else []
        session = self.session(Setting())
        self.engine, self.backend = session.precision, session.backend
        self.on_cpu = session.backend == CPU
        self.embeddings = session.embed(self._inputs)
        check_embeddings(self.embeddings, self.golden.keys, f"the {session.precision} engine")
        self._expected = self.embeddings
        if end_to_end:  # JPEG loses a little
            self._expected = session.embed(decoded(self._files, bundle.spec))

    def session(self, setting: Setting) -> EngineSession:
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

    def work(self, setting: Setting) -> Work:
        spec, size = self.spec, setting.batch
        batches = (
            encoded_batches(self._files, spec, size)
            if self._files
            else ready_batches(self._inputs, size)
        )
        expected = [self._expected[pick] for pick in turns(len(self._inputs), size)]
        return Work(self._open(setting), batches, expected)

    def _open(self, setting: Setting) -> list[EngineSession]:
        threads = setting.threads
        if threads is None and setting.streams > 1 and self.on_cpu:
            threads = max(1, cores() // setting.streams)  # else they stand in each other's way
        opened = self._sessions.setdefault(threads, [])
        while len(opened) < setting.streams:
            opened.append(open_session(self._bundle, self._engine, self._backend, threads=threads))
        return opened[: setting.streams]
