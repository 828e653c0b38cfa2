"""`fr-edge accept` on pretend boards that something is wrong with: verdict, words, exit code, the file.

On boards that do everything it runs in test_documented_commands.py. Doubles: no GPU is behind them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from board_texts import TRTEXEC_10
from board_trees import MAC, SERIAL, write_tool
from shell import HOST, USER, Done, Shell, private

Open = Callable[..., Shell]
SUPER = "orin-nano-super@jetpack6.2"


def accept(shell: Shell) -> tuple[Done, dict[str, Any]]:
    """Run it on the sample alone; its file tells nothing private, whatever went wrong."""
    shell.ready()
    done = shell.run("fr-edge accept --out a.json")
    text = (shell.work / "a.json").read_text()
    assert private(text, shell) == []
    told = json.loads(text)
    assert told["seconds"] < 600
    assert (done.code == 0) is (told["verdict"] == "PASSED"), f"{done.err}\n{shell.log()}"
    return done, told


@pytest.mark.parametrize(
    ("board", "double", "verdict", "reason"),
    [
        (SUPER, {"keeps": "fp16"}, "FAILED", "sample int8: none of the engine's 5 Conv layers"),
        ("l4@10.13", {"REPLAY": "nothing"}, "CANNOT JUDGE", "batch 1 is not replayed as a CUDA"),
        (SUPER, {"FREE_MB": "1"}, "CANNOT JUDGE", "CUDA_ERROR_OUT_OF_MEMORY"),
    ],
    ids=["no-int8", "replays", "memory"],
)
def test_engines_that_are_not_right(
    open_board: Open, calibrated_mini: Path, board: str, double: Any, verdict: str, reason: str
) -> None:
    shell = open_board(board, sample=str(calibrated_mini), **double)
    done, told = accept(shell)
    assert (done.code, told["verdict"]) == (1, verdict)
    assert any(reason in text for text in told["reasons"]), told["reasons"]
    assert reason in done.err
    if verdict == "FAILED":  # the others are right, and compared
        assert [e["verdict"] for e in told["engines"]] == ["FAILED", "PASSED", "PASSED"]
        assert set(told["choices"][0]["times_ms"]) == {"fp16", "fp32"}
    else:
        assert told["choices"] == []


@pytest.mark.parametrize(
    ("double", "reason"),
    [
        ({"CUDA": "11080"}, "needs a newer driver than this one, which serves CUDA 11.8"),
        ({"INIT": "803"}, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
    ],
    ids=["old-driver", "no-gpu"],
)
def test_nothing_runs(
    open_board: Open, calibrated_mini: Path, double: dict[str, str], reason: str
) -> None:
    done, told = accept(open_board("l4@10.13", sample=str(calibrated_mini), **double))
    assert (done.code, told["verdict"]) == (1, "CANNOT JUDGE")
    assert any(reason in text for text in told["reasons"]), told["reasons"]
    assert all(not check["size"] for check in told["engines"])


def test_what_trtexec_says_is_read_without_its_names(
    open_board: Open, calibrated_mini: Path
) -> None:
    """One that fails at first, and says where; the engine is judged all the same."""
    shell = open_board("h100@11.4", sample=str(calibrated_mini))
    gossip = f"[E] {USER}@{HOST} {MAC} {SERIAL}: cannot read {shell.home}/mine.plan"
    once = f"{shell.home}/asked"
    script = f'[ -f {once} ] || {{ touch {once}; echo "{gossip}"; exit 1; }}'
    write_tool(shell.home / "bin" / "trtexec", f"{script}\ncat <<'E'\n{TRTEXEC_10}E")
    done, told = accept(shell)
    assert (done.code, told["verdict"]) == (0, "PASSED"), done.err
    failed, *others = told["engines"]
    assert failed["trtexec"]["problem"].startswith("trtexec ended with 1: [E] <removed>")
    assert failed["trtexec"]["compute_ratio"] is None
    assert len(others) == 2
    for check in others:
        assert check["trtexec"]["median_ms"]["GPU Compute Time"] == 2.125
        compute = check["benchmark"]["runs"][0]["breakdown_ms"]["compute"]
        assert check["trtexec"]["compute_ratio"] == pytest.approx(compute / 2.125)
