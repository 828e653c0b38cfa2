"""`fr-edge unpack`: a bundle from one file, whose signature is checked first."""

import click

from . import options
from .command import define_command
from .output import Output, size_text


@define_command("unpack", example="fr-edge unpack mine.frb --out fresh.bundle --trust maker.pub")
@click.argument("file", metavar="FILE.frb")
@click.option("--out", required=True, metavar="DIR", help="The bundle's folder; a new one.")
@options.trust
@click.option("--allow-unsigned", is_flag=True, help="Take a pack that no trusted key has signed.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
def command(
    output: Output, file: str, out: str, trust: tuple[str, ...], allow_unsigned: bool, force: bool
) -> None:
    """Make a bundle of a pack, if a trusted key has signed it.

    Trusted are the keys that --trust names, those of FR_EDGE_TRUSTED_KEYS, and *.pub in
    ~/.config/fr-edge/trusted. Refused is what is changed, cut, linked, not listed or larger than the
    manifest says; then nothing is left. Exit code 4 for a file that is refused.
    """
    from pathlib import Path

    from ..bundle.keys import trusted_keys
    from ..bundle.pack import unpack
    from ..documents import to_builtins

    keys = trusted_keys(Path(path) for path in trust)
    result = unpack(file, out, keys, allow_unsigned=allow_unsigned, force=force)
    signed = ", ".join(result.signed_by)
    lines = [
        f"{result.bundle}: {result.files} files, {size_text(result.size)}",
        f"  signed by {signed}" if signed else "  not signed by a trusted key",
        f"next: fr-edge inspect {out}",
    ]
    output.result(to_builtins(result), "\n".join(lines))
