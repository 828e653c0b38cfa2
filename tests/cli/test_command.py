"""What every command has: its help page, and what the package logs on stderr."""

import logging
import os

import click
import pytest

from fr_edge.cli.command import define_command
from fr_edge.cli.main import COMMANDS, root
from fr_edge.cli.output import Output
from fr_edge.errors import UsageError
from fr_edge.reading import read_limit

Captured = pytest.CaptureFixture[str]
GROUPS = {"Gates": ("--limit",)}
MANY = 10  # options; a command with more shows them in groups


@define_command("greet", example="fr-edge greet ann", option_groups=GROUPS)
@click.argument("who")
@click.option("--limit", help="Gate.")
@click.option("--loud", is_flag=True, help="Greet loudly.")
def greet(output: Output, who: str, limit: str | None, loud: bool) -> None:
    """Greet somebody."""
    logger = logging.getLogger("fr_edge.test")
    logger.debug("a detail")
    logger.info("a %s", "note")
    logger.warning("be careful")
    logger.error("it is broken")
    output.result({"who": who}, who)


def test_help_shows_groups_and_ends_in_the_example() -> None:
    text = greet.get_help(click.Context(greet, info_name="greet"))
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Options:", "Gates:", "Output and help:", "Example:"]
    assert text.endswith("Example:\n  fr-edge greet ann")
    assert text.index("--loud") < text.index("Gates:") < text.index("--limit")
    assert text.index("Output and help:") < text.index("--json")


def test_a_group_of_an_option_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="--speed"):
        define_command("x", example="", option_groups={"Load": ("--speed",)})(lambda output: None)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_with_many_options_group_them(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    context = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
    text = command.get_help(context)
    options = sum(isinstance(parameter, click.Option) for parameter in command.params)
    assert ("Output and help:" in text) == (options > MANY)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("flags", "err"),
    [
        ([], "a note\nwarning: be careful\nit is broken\n"),
        (["-q"], "it is broken\n"),
        (["-v"], "a detail\na note\nwarning: be careful\nit is broken\n"),
    ],
)
def test_what_is_logged_goes_to_stderr(flags: list[str], err: str, capsys: Captured) -> None:
    greet.main(["ann", *flags], standalone_mode=False)
    assert capsys.readouterr() == ("ann\n", err)
    assert not logging.getLogger("fr_edge").handlers


def test_two_quiet_commands_at_once_silence_nothing_for_good(capsys: Captured) -> None:
    """Each puts the logger's level back, the second one to what the first had made of it."""
    from fr_edge.cli.command import _log_to_stderr

    first, second = (_log_to_stderr(quiet=True, verbose=False) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    logging.getLogger("fr_edge.test").warning("unheard")
    second.__exit__(None, None, None)
    assert capsys.readouterr().err == ""
    assert logging.getLogger("fr_edge").getEffectiveLevel() <= logging.WARNING


@define_command("depth", example="fr-edge depth")
def depth(output: Output) -> None:
    """Print a limit."""
    output.result(None, f"{read_limit('DEPTH')} {read_limit('NODES')}")


def test_a_limit_is_raised_for_one_command(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("FR_EDGE_MAX_NODES", "7")
    before = dict(os.environ)
    raised = ["--raise-limit", "depth=99", "--raise-limit", "nodes=8"]
    depth.main(raised, standalone_mode=False)
    with pytest.raises(UsageError, match="--raise-limit"):
        depth.main([*raised, "--raise-limit", "depth=many"], standalone_mode=False)
    depth.main([], standalone_mode=False)
    assert capsys.readouterr().out == "99 8\n64 7\n"
    assert dict(os.environ) == before
