"""What one line of a benchmark measures: batch size, threads, streams and rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What was run: `batch` faces in each of `streams` sessions at the same time, each of
    `threads` (onnxruntime's; None is one for each core). With `rate` so many queries of a batch
    arrive a second, at random; without, one follows the other."""

    batch: int = 1
    threads: int | None = None
    streams: int = 1
    rate: int | None = None

    @property
    def faces(self) -> int:
        """In one run."""
        return self.batch * self.streams
