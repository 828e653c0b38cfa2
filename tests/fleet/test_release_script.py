"""What a roll-out does on a board: the shell script, with a double of fr-edge in its place."""

import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest
from fleet_documents import verification

import fr_edge.fleet

SCRIPT = (
    Path(fr_edge.fleet.__file__).parent
    / "collection"
    / "playbooks"
    / "roles"
    / "board"
    / "files"
    / "release.sh"
)
DOUBLE = Path(__file__).with_name("fr_edge_double.sh")


class PretendRelease:
    """A home with the script's folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.root = home, home / "fr-edge"
        self.root.mkdir()
        (home / "verify.json").write_text(json.dumps(verification()))
        (home / "benchmark.json").write_text("{}")

    def run(self, verb: str = "roll-out", release: str = "one", **settings: str) -> tuple[int, str]:
        """Returns the exit code, and stdout."""
        (self.home / "calls").unlink(missing_ok=True)
        if verb == "roll-out":
            (self.root / "releases" / release).mkdir(parents=True, exist_ok=True)
        environment = {
            **{
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "ROOT": "~/fr-edge",
                "FR_EDGE": str(DOUBLE),
            },
            **{"RELEASE": release, "BACKEND": "auto", "PRECISIONS": "int8", "ACCEPT": "yes"},
            **{
                "UNSIGNED": "",
                "TRUST": "",
                "POLICY": "",
                "VERIFY_OPTIONS": "",
                "BENCHMARK_OPTIONS": "",
                **settings,
            },
        }
        done = subprocess.run(
            ["sh", str(SCRIPT), verb],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    @property
    def calls(self) -> list[str]:
        """The commands that the script ran."""
        path = self.home / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def evidence(self, release: str = "one") -> set[str]:
        path = self.root / "releases" / release / "evidence.json"
        return set(json.loads(path.read_text())["evidence"])

    def behave(self, text: str) -> None:
        (self.home / "behaviour").write_text(text)

    def link(self, name: str) -> str:
        path = self.root / name
        return os.readlink(path) if path.is_symlink() else ""


@pytest.fixture
def board(tmp_path: Path) -> PretendRelease:
    return PretendRelease(tmp_path)


EVERY = ["unpack", "build-engine", "accept", "verify", "benchmark"]


def test_a_release_is_made_once_and_taken_into_use_by_a_link(board: PretendRelease) -> None:
    code, text = board.run()
    assert (code, board.calls) == (0, EVERY)
    assert board.evidence() == {"accept", "benchmark-int8", "build-int8", "unpack", "verify-int8"}
    assert "changed" in text.splitlines()
    assert (board.link("current"), board.link("previous")) == ("releases/one", "")
    code, text = board.run()
    assert (code, board.calls) == (0, [])
    assert "changed" not in text.splitlines()
    assert board.evidence() == {"accept", "benchmark-int8", "build-int8", "unpack", "verify-int8"}


def test_another_precision_or_policy_repeats_only_what_depends_on_it(board: PretendRelease) -> None:
    board.run()
    board.run(PRECISIONS="int8 fp16")
    assert board.calls == ["build-engine", "verify", "benchmark"]
    for text in ("max_p99_ms = 8.0", "max_p99_ms = 9.0"):
        (board.root / "releases" / "one" / "policy.toml").write_text(f"[benchmark]\n{text}\n")
        board.run(POLICY="yes")
        assert board.calls == ["verify", "benchmark"]
        board.run(POLICY="yes")
        assert board.calls == []


@pytest.mark.parametrize("step", ["verify", "benchmark"])
def test_a_gate_that_fails_leaves_the_release_before_in_use(
    board: PretendRelease, step: str
) -> None:
    board.run()
    board.behave(f'[ $command = {step} ] && echo "{{}}" && exit 1')
    code, text = board.run(release="two")
    assert (code, board.calls) == (1, EVERY)
    assert f"{step}-int8" in board.evidence("two")
    assert board.link("current") == "releases/one"
    board.behave("")
    assert board.run(release="two")[0] == 0
    assert board.calls == [step]  # which alone was missing
    assert (board.link("current"), board.link("previous")) == ("releases/two", "releases/one")


def test_an_acceptance_that_had_no_time_left_goes_on_and_one_that_failed_does_not(
    board: PretendRelease,
) -> None:
    board.behave('[ $command = accept ] && echo "{\\"left\\": [\\"yours int8\\"]}" >"$4" && exit 1')
    assert board.run()[0] == 1
    assert board.calls.count("accept") == 3
    board.behave('[ $command = accept ] && echo "{\\"left\\": []}" >"$4" && exit 1')
    assert board.run()[0] == 1
    assert board.calls == ["accept"]
    error = '{\\"error\\": \\"no GPU\\", \\"exit_code\\": 3}'
    board.behave(f'[ $command = accept ] && echo "{error}" && exit 3')
    assert board.run()[0] == 1
    accepted = board.root / "releases" / "one" / "evidence" / "accept.json"
    assert json.loads(accepted.read_text())["error"] == "no GPU"


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (
            'echo "{\\"error\\": \\"the disk is full\\", \\"exit_code\\": 3}"; exit 3',
            "the disk is full",
        ),
        ('echo "Killed \\"hard\\"" >&2; exit 137', "build-int8 ended with 137: Killed hard"),
    ],
)
def test_a_step_that_fails_is_named_and_done_at_the_next_run(
    board: PretendRelease, behaviour: str, error: str
) -> None:
    board.behave(f"[ $command = build-engine ] && {{ {behaviour}; }}")
    code, text = board.run()
    assert (code, board.calls) == (4, ["unpack", "build-engine"])
    assert "failed build-int8" in text.splitlines()
    evidence = board.root / "releases" / "one" / "evidence" / "build-int8.json"
    assert json.loads(evidence.read_text())["error"] == error
    assert board.link("current") == ""
    board.behave("")
    assert board.run()[0] == 0
    assert board.calls == EVERY[1:]


def test_two_at_once_are_refused(board: PretendRelease) -> None:
    with (board.root / "lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        code, text = board.run()
        assert (code, board.calls) == (75, [])
        assert text.startswith("refused: another roll-out is at work")
    assert board.run()[0] == 0


def test_a_policy_of_one_roll_out_does_not_hold_for_the_next(board: PretendRelease) -> None:
    board.run()
    folder = board.root / "releases" / "one"
    (folder / "policy.toml").write_text("[benchmark]\nmax_p99_ms = 0.1\n")
    board.run(POLICY="yes")
    board.run()
    assert board.calls == ["verify", "benchmark"]
    assert (board.home / "calls").read_text().count("--policy releases/one/own-policy.toml") == 2
    assert (folder / "own-policy.toml").read_text() == ""  # the bundle has none


def test_roll_back_switches_once_and_old_releases_go(board: PretendRelease) -> None:
    assert board.run("roll-back")[0] == 75
    for release in ("one", "two", "three"):
        assert board.run(release=release)[0] == 0
    assert sorted(p.name for p in (board.root / "releases").iterdir()) == ["three", "two"]
    assert board.run("roll-back") == (0, "changed\n")
    assert board.link("current") == "releases/two"
    assert board.run("roll-back") == (0, "")  # it is back already
    assert board.link("current") == "releases/two"
    assert board.run(release="three")[0] == 0
    assert board.calls == []
    assert (board.link("current"), board.link("previous")) == ("releases/three", "releases/two")
