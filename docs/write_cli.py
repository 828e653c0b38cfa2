"""Writes docs/cli.md from the commands themselves; a test compares the two."""

from pathlib import Path

import click

from fr_edge.cli.main import COMMANDS, root

PAGE = Path(__file__).parent / "cli.md"

INTRODUCTION = """# The command line

This page is written by `make docs` from the commands themselves.

Every command takes `-h`, `-q` (no progress, no notes), `-v` (where an error came from) and `--json`:
then stdout is exactly one JSON document, and people's text goes to stderr. `--log-file FILE`, or the variable `FR_EDGE_LOG`
for all commands, appends to a file of mode 0600 which options were given, what was logged, where an error came from and the exit
code; paths, quoted texts and messages about faces, in which people's names may stand, are left out, so that it can be sent.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | it ran, and a gate failed |
| 2 | the command line does not make sense |
| 3 | this machine lacks what it takes |
| 4 | the data or a file is bad |
| 130, 143, 129 | interrupted by SIGINT (Ctrl-C), SIGTERM, SIGHUP |

Faces (`SRC`) are a folder of aligned images, 112x112 or the network's size (the identity is the image's folder, at any
depth), an InsightFace RecordIO folder, `.tar` shards, or `synthetic:IDSxIMAGES` (synthetic people; `@SEED`
gives other people).

`make man` writes man pages; a released wheel installs them (`man fr-edge-verify`).

Completion of commands, options, files, presets, recipes, boards and engines: `eval "$(_FR_EDGE_COMPLETE=bash_source fr-edge)"` (or `zsh_source`, `fish_source`).
"""


def page() -> str:
    parts = [INTRODUCTION, _help("fr-edge", root)]
    context = click.Context(root, info_name="fr-edge")
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        parts.append(_help(f"fr-edge {name}", command))
        for inner, below in getattr(command, "commands", {}).items():
            parts.append(_help(f"fr-edge {name} {inner}", below))
    return "\n".join(parts)


def _help(title: str, command: click.Command) -> str:
    context = click.Context(
        command, info_name=title, terminal_width=100, help_option_names=["-h", "--help"]
    )
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
