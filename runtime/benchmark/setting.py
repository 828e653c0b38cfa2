"""What one line of a benchmark measures: batch size, threads, streams and rate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import UsageError

AUTO_BATCHES = (1, 2, 4, 8, 16, 32)  # tried in turn until a larger one no longer pays


@dataclass(frozen=True)
class Setting:
    """How an engine is run.

    Attributes:
        batch: Faces in one call of one session.
        threads: onnxruntime's; None for one per core, or the cores over the streams.
        streams: Sessions that run at the same time.
        rate: Queries per second, of a batch each, that arrive at random; None to run one batch
            after the other.
    """

    batch: int = 1
    threads: int | None = None
    streams: int = 1
    rate: int | None = None

    @property
    def faces(self) -> int:
        """Faces in one run."""
        return self.batch * self.streams

    @property
    def label(self) -> str:
        """The batch, and beside it what is not the default."""
        label = f"batch {self.batch}"
        label += f", threads {self.threads}" if self.threads else ""
        label += f", streams {self.streams}" if self.streams > 1 else ""
        return label + (f", {self.rate} queries/s" if self.rate else "")


def check_options(
    batches: Sequence[int] | None,
    threads: Sequence[int],
    streams: Sequence[int],
    rates: Sequence[int],
    duration_s: float,
) -> None:
    """Refuse a benchmark's options that no engine could be run with.

    Args:
        batches: Batch sizes, None for `AUTO_BATCHES`.
        threads: Numbers of threads, empty for the default.
        streams: Numbers of streams.
        rates: Queries per second, empty for none.
        duration_s: Of each setting, seconds.

    Raises:
        UsageError: A number is below 1, or options exclude each other.
    """
    for name, example, values in (
        ("batch sizes", "--batch 1,8", (1,) if batches is None else batches),
        ("threads", "--threads 1,2", threads or (1,)),
        ("streams", "--streams 1,2", streams),
        ("rates", "--rate 20,50", rates or (1,)),
    ):
        if not values or min(values) < 1:
            raise UsageError(f"{name} are 1 or more, found {list(values)}", f"such as {example}")
    if rates and (batches is None or tuple(streams) != (1,)):
        raise UsageError(
            "queries at random are answered by one session, in batches of a given size",
            "leave out --streams and --batch auto",
        )
    if not 0 < duration_s < float("inf"):
        raise UsageError(
            f"the duration is above 0 seconds, found {duration_s}", "such as --duration 10"
        )


def all_settings(
    batches: Sequence[int] | None,
    threads: Sequence[int],
    streams: Sequence[int],
    rates: Sequence[int],
    largest_batch: int | None,
    *,
    one_face: bool = False,
) -> list[Setting]:
    """Every combination of the options, in the order in which they are run.

    Args:
        batches: Batch sizes, None for those of `AUTO_BATCHES` that the engine takes.
        threads: Numbers of threads, empty for the default.
        streams: Numbers of streams.
        rates: Queries per second, empty for none.
        largest_batch: Faces that one run of the engine takes, None where any number does.
        one_face: Whether the network itself takes one face at a time, so that no engine takes more.

    Raises:
        UsageError: A batch is larger than the engine takes.
    """
    if batches is None:
        batches = [size for size in AUTO_BATCHES if largest_batch is None or size <= largest_batch]
    elif largest_batch is not None and max(batches) > largest_batch:
        asked = f"a batch of {max(batches)}"
        if one_face:
            raise UsageError(
                f"{asked} is more than the network takes: one face at a time, its batch is fixed",
                "--batch 1; several sessions at the same time: --streams 2",
            )
        raise UsageError(
            f"{asked} is beyond the engine's profile, it takes up to {largest_batch}",
            "a smaller --batch, or build the engine again with a larger one",
        )
    return list(_combinations(batches, threads or (None,), streams, rates or (None,)))


def _combinations(
    batches: Sequence[int],
    threads: Sequence[int | None],
    streams: Sequence[int],
    rates: Sequence[int | None],
) -> Iterator[Setting]:
    for count in threads:
        for number in streams:
            for size in batches:
                for rate in rates:
                    yield Setting(size, count, number, rate)
