"""Embeddings survive an interruption, for their user alone, and never another face's."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fr_edge.arrays import F32, U8
from fr_edge.faces.embedding_log import logged_embedder, logged_network
from fr_edge.faces.sources import Faces, open_faces
from fr_edge.interruption import Interrupted
from fr_edge.runtime.session import embed_faces


@dataclass
class Counting:
    """A double of a session: its embeddings are sums of pixels, and it counts the faces."""

    dim: int = 4
    seen: list[int] = field(default_factory=list)

    def embed(self, images: U8) -> F32:
        self.seen.append(len(images))
        rows: F32 = images.reshape(len(images), self.dim, -1).sum(2).astype(np.float32)
        return rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fr_edge.faces.embedding_log._AFTER_S", 0.0)
    return tmp_path / "cache" / "fr-edge" / "embeddings"


@pytest.fixture(scope="module")
def faces() -> Faces:
    return open_faces("synthetic:20x8@7").cached()


def embed(session: Counting, faces: Faces, stop_at: int | None = None, *identity: str) -> F32:
    def track(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        for number, item in enumerate(items):
            if number == stop_at:
                raise KeyboardInterrupt
            yield item

    with logged_embedder(session, faces, "sha256", *identity) as logged:
        return embed_faces(logged, faces, track)


def test_work_goes_on_where_it_was_interrupted(faces: Faces, cache: Path) -> None:
    whole = embed(Counting(), faces)
    assert list(cache.iterdir()) == []
    with pytest.raises(Interrupted, match="the embeddings of 64 faces are kept"):
        embed(Counting(), faces, 2)
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert cache.stat().st_mode & 0o777 == 0o700
    with pytest.raises(Interrupted, match="the embeddings of 128 faces are kept"):
        embed(Counting(), faces, 4)
    session = Counting()
    np.testing.assert_array_equal(embed(session, faces), whole)
    assert session.seen == [32]
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, None])
def test_other_or_torn_records_are_made_anew(
    damage: bytes | None, faces: Faces, cache: Path
) -> None:
    whole = embed(Counting(), faces)
    with pytest.raises(Interrupted):
        embed(Counting(), faces, 2)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-1] if damage is None else damage + data[len(damage) :][:100])
    session = Counting()
    np.testing.assert_array_equal(embed(session, faces), whole)
    assert sum(session.seen) == (128 if damage is None else 160)


def test_other_pixels_or_another_engine_get_nothing_of_it(faces: Faces, cache: Path) -> None:
    with pytest.raises(Interrupted):
        embed(Counting(), faces, 2)
    changed = replace(faces, read=lambda index: 255 - faces.read(index))
    session = Counting()
    np.testing.assert_array_equal(embed(session, changed), embed(Counting(), changed, None, "b"))
    assert sum(session.seen) == 160
    with pytest.raises(Interrupted):
        embed(Counting(), faces, 2)
    session = Counting()
    embed(session, faces, None, "another engine")
    assert sum(session.seen) == 160


def test_a_second_run_at_the_same_time_and_a_missing_cache_do_without(
    faces: Faces, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with logged_embedder(Counting(), faces, "sha256") as first:
        first.embed(np.zeros((2, 112, 112, 3), np.uint8))
        with pytest.raises(Interrupted) as caught:
            embed(Counting(), faces, 2)
        assert caught.value.kept == ""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert embed(Counting(), faces).shape == (160, 4)


def test_errors_and_old_logs_leave_nothing(faces: Faces, cache: Path) -> None:
    with pytest.raises(Interrupted):
        embed(Counting(), faces, 2, "old")
    (old,) = cache.iterdir()
    os.utime(old, (time.time() - 8 * 24 * 3600,) * 2)
    broken = replace(faces, read=lambda index: faces.read(index // (index < 64)))
    with pytest.raises(ZeroDivisionError):
        embed(Counting(), broken)
    assert list(cache.iterdir()) == []


def test_a_network_is_known_by_what_it_computes(faces: Faces, cache: Path) -> None:
    calls: list[int] = []

    def embed(inputs: F32) -> F32:
        calls.append(len(inputs))
        rows: F32 = inputs.reshape(len(inputs), 4, -1).sum(2)
        return rows

    def search(factor: int, count: int) -> list[F32]:
        """Embed batches of 2, 3 and 5; stop after some of them."""
        with logged_network(lambda x: factor * embed(x), (1, 4, 4), faces, "search") as log:
            rows = [log(np.full((n, 1, 4, 4), n, np.float32)) for n in (2, 3, 5)[:count]]
            if count < 3:
                raise KeyboardInterrupt
            return rows

    with pytest.raises(Interrupted, match="the embeddings of 5 faces are kept"):
        search(1, 2)
    with pytest.raises(Interrupted):
        search(2, 1)
    assert calls == [1, 2, 3, 1, 2]  # the first of each tells which network it is
    calls.clear()
    rows = search(1, 3)
    assert calls == [1, 5]
    assert [float(row[0, 0]) for row in rows] == [8, 12, 20]


def test_a_record_with_other_numbers_per_row_is_not_read(faces: Faces, cache: Path) -> None:
    """Its size would be the memory that is asked for."""
    with pytest.raises(Interrupted):
        embed(Counting(), faces, 2)
    (file,) = cache.iterdir()
    data = bytearray(file.read_bytes())
    data[36:40] = b"\xff" * 4
    file.write_bytes(data)
    session = Counting()
    embed(session, faces)
    assert sum(session.seen) == 160
