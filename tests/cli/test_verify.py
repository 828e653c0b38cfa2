"""What the commands that judge say on the command line, and what they refuse."""

from pathlib import Path

import pytest

from fr_edge.cli.main import run

Captured = pytest.CaptureFixture[str]
PEOPLE = "synthetic:24x3"


@pytest.mark.parametrize("flags", ["N2D1F0", "n1d1f1", "N1D1", ""])
def test_ijb_flags_that_are_none(flags: str, bundle: Path, capsys: Captured) -> None:
    assert run(["evaluate", str(bundle), "--protocol", PEOPLE, "--ijb", flags]) == 2
    assert "N1D1F1" in capsys.readouterr().err


def test_ijb_flags_are_for_ijb(bundle: Path, capsys: Captured) -> None:
    assert run(["evaluate", str(bundle), "--protocol", PEOPLE, "--ijb", "N1D0F1"]) == 2
    assert "IJB" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["missing/gates.xml", "."])
def test_a_junit_file_is_refused_before_the_work(
    file: str, bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    kept = sorted(bundle.rglob("*"))
    assert run(["verify", str(bundle), "--junit", str(tmp_path / file)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert sorted(bundle.rglob("*")) == kept


def test_one_person_is_no_judge(bundle: Path, capsys: Captured) -> None:
    assert run(["verify", str(bundle), "--faces", "synthetic:1x4"]) == 4
    assert "4 faces of 1 people" in capsys.readouterr().err


def test_embeddings_go_only_where_they_belong(
    bundle: Path, distinct: Path, tmp_path: Path, capsys: Captured
) -> None:
    """A file of the engine's own is no reference; as a gallery it may be tried."""
    file = str(tmp_path / "e.npz")
    args = ["--faces", str(distinct), "--engine", "int8", "-q"]
    assert run(["embed", str(bundle), "--out", file, *args]) == 0
    assert run(["verify", str(bundle), "--reference", file, *args]) == 4
    assert "made by the int8 engine" in capsys.readouterr().err
    assert run(["verify", str(bundle), "--teacher", file, "--far", "1e-2", *args]) == 0
    message = capsys.readouterr().out
    assert "people enrolled with the teacher (e.npz): keep the gallery" in message
    assert "match threshold at FAR 1e-2: original" in message


def test_three_verdicts_on_the_command_line(bundle: Path, distinct: Path, capsys: Captured) -> None:
    args = ["verify", str(bundle), "-q"]
    assert run([*args, "--faces", str(distinct)]) == 0
    assert "PASSED: 160 faces of 40 people" in capsys.readouterr().out
    assert run(args) == 0
    assert "PASSED: embeddings of 32 golden faces" in (out := capsys.readouterr().out)
    assert "people were not judged" in out
    assert run([*args, "--min-cosine", "1"]) == 1
    assert "\nFAILED: " in capsys.readouterr().out
    assert run([*args, "--faces", PEOPLE]) == 1
    told = capsys.readouterr()
    assert "\nCANNOT JUDGE: the reference itself hardly tells these people apart" in told.out
    assert "\n  cure: " in told.out
    assert "keep the gallery" not in told.out
    assert told.err.startswith("fr-edge: CANNOT JUDGE: ")


def test_each_protocol_keeps_its_report(bundle: Path, capsys: Captured) -> None:
    for protocol in (PEOPLE, "synthetic:12x3@4"):
        assert run(["evaluate", str(bundle), "--protocol", protocol, "-q"]) == 0
    assert "one to many: rank 1" in capsys.readouterr().out
    kept = sorted(path.name[:-14] for path in (bundle / "reports").glob("evaluate-*"))
    assert kept == ["evaluate-int8-synthetic-12x3-4", "evaluate-int8-synthetic-24x3"]
    assert run(["compare", str(bundle), str(bundle)]) == 0
    message = capsys.readouterr().out
    assert "evaluate int8 synthetic:12x3@4: TAR at 1e-2" in message
    assert " to " in message  # intervals
