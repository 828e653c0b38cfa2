"""What a shell offers: files, folders and the names that fr-edge knows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from fr_edge.cli.main import root

OFFERED = {
    "inspect mi": [("file", "mi")],
    "verify mine.bundle --pairs ": [("file", "")],
    "run photos mine.onnx --out ": [("dir", "")],
    "run photos mine.onnx --detector det": [("file", "det")],
    "export a.onnx --preset ins": [("plain", "insightface")],
    "distill ada": [("plain", "adadistill"), ("plain", "adadistill-plus")],
    "distill my.to": [("file", "my.to")],
    "targets --target orin-nano@jetpack6.": [
        ("plain", f"orin-nano@jetpack6.{minor}") for minor in (0, 1, 2)
    ],
    "verify mine.bundle --backend tensorrt-": [("plain", "tensorrt-rtx")],
    "verify mine.bundle --engine int8-": [
        ("plain", f"int8-{kind}") for kind in ("tensor", "crop", "frame")
    ],
    "export a.onnx --mean ": [],
}


@pytest.mark.parametrize("line", OFFERED)
def test_values_are_offered(line: str) -> None:
    *words, incomplete = line.split(" ")
    shell = BashComplete(root, {}, "fr-edge", "_FR_EDGE_COMPLETE")
    found = [(item.type, item.value) for item in shell.get_completions(words, incomplete)]
    assert found == OFFERED[line]


BASH = """
eval "$(_FR_EDGE_COMPLETE=bash_source fr-edge)"
COMP_WORDS=(fr-edge distill small-r); COMP_CWORD=2
_fr_edge_completion fr-edge small-r distill
echo "fr-edge distill ${COMPREPLY[*]}"
"""
FISH = """
_FR_EDGE_COMPLETE=fish_source fr-edge | source
echo fr-edge distill (complete -C "fr-edge distill small-r")
"""
# Typed with Tab in a terminal of its own; the line that results is printed, not run.
ZSH = r"""
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1='asks> '; autoload -U compinit; compinit -u -D; zstyle ':completion:*' insert-tab false; \
eval \"\$(_FR_EDGE_COMPLETE=zsh_source fr-edge)\"; print rea''dy"
zpty -r z out '*ready*asks> *'
zpty -w -n z $'fr-edge distill small-r\t'
zpty -r z out '*small-real*'
zpty -w -n z $'\C-aprint -r -- \C-e; print do""ne\n'
zpty -r z out '*done*'
print -r -- $out
"""


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("fish", FISH), ("zsh", ZSH)])
def test_a_shell_completes_a_recipe(shell: str, script: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    place = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", script],
        env={"PATH": place, "HOME": str(tmp_path), "TERM": "xterm"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "fr-edge distill small-real" in lines, done.stderr
