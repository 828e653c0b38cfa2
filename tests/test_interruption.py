"""Signals: what is said, what is deferred, and the exit code, in real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fr_edge.bundle.bundle import open_bundle, transaction
from fr_edge.faces.contract import InputSpec
from fr_edge.interruption import (
    Interrupted,
    deferred_signals,
    find_interruption,
    interrupted,
    interruptible,
    keeping,
)

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def make(root: Path) -> Path:
    with transaction(root, "export", {}) as change:
        change.spec, change.embedding_dim = InputSpec(), 8
        change.path("one", "test").write_text("1")
    return root


def send(*numbers: int, pause_s: float = 0.01) -> None:
    """Signals to this process, with time to handle each."""
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(pause_s)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_becomes_an_interruption(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interruptible():
        send(number)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(), deferred_signals() as request:
            send(signal.SIGINT)
            assert request.number == 0
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_deferred_signal_comes_at_the_end() -> None:
    """Torchrun sends another right behind the terminal's."""
    with pytest.raises(Interrupted) as caught, deferred_signals() as request:
        send(signal.SIGTERM, signal.SIGINT)
    assert request.number == signal.SIGTERM
    assert caught.value.number == signal.SIGTERM


def test_a_second_signal_after_a_while_is_not_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr_edge.interruption._PATIENCE_S", 0.05)
    with pytest.raises(Interrupted) as caught, deferred_signals():
        send(signal.SIGTERM, signal.SIGINT, pause_s=0.1)
    assert caught.value.number == signal.SIGINT


def fail(*numbers: int) -> None:
    send(*numbers)
    raise RuntimeError("a worker was killed")


def test_an_error_that_the_signal_caused_is_an_interruption() -> None:
    with pytest.raises(Interrupted) as caught, deferred_signals():
        fail(signal.SIGTERM)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError), deferred_signals():
        fail()


def test_what_is_kept_is_told_from_the_inside_out() -> None:
    with pytest.raises(Interrupted) as caught, keeping(lambda: "b"), keeping(lambda: "a"):
        raise KeyboardInterrupt
    assert (caught.value.kept, caught.value.number) == ("a; b", signal.SIGINT)
    error = ImportError("initialization failed")
    error.__cause__ = Interrupted(signal.SIGTERM, "c")
    assert find_interruption(error) is error.__cause__
    assert find_interruption(ImportError()) is None
    assert interrupted(Interrupted(signal.SIGTERM, "c"), "d").kept == "c; d"


# A command that waits for its signal inside a change, or gets it while the change is committed.
COMMAND = """
import os, sys, time
from fr_edge.bundle import bundle
from fr_edge.cli import main
from fr_edge.cli.command import define_command

_, root, number, place = sys.argv
replay = bundle.replay_journal

def slow_replay(root):
    if (root / "bundle.next.json").exists():
        os.kill(os.getpid(), int(number))
        time.sleep(0.1)
    replay(root)

@define_command("report", example="")
def slow(output):
    with bundle.transaction(root, "slow", {}) as change:
        change.path("two", "test").write_text("2")
        print("in", flush=True)
        if place == "work":
            time.sleep(60)
    print("not reached")

if place == "commit":
    bundle.replay_journal = slow_replay
main.root.get_command = lambda context, name: slow
sys.exit(main.run(["report"]))
"""


@pytest.mark.parametrize(
    ("number", "place", "said"),
    [
        *((number, "work", "slow changed nothing in") for number in STOPS),
        (signal.SIGTERM, "commit", "slow is complete in"),
    ],
)
def test_a_command_says_what_is_kept(number: int, place: str, said: str, tmp_path: Path) -> None:
    root = make(tmp_path / "a.bundle")
    before = (root / "bundle.json").read_bytes()
    command = [sys.executable, "-c", COMMAND, str(root), str(int(number)), place]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=defaults
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    if place == "work":
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert out == ""
    line = f"fr-edge: interrupted: {said} {root}; run the same command again"
    assert line in err.splitlines()
    assert not (root / ".draft").exists()
    changed = (root / "bundle.json").read_bytes() != before
    assert changed == (place == "commit") == ("two" in open_bundle(root, check="all"))


def defaults() -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
