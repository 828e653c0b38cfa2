"""`fr-edge pack`: a bundle as one file, signed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .output import Output, size_text

if TYPE_CHECKING:
    from ..bundle.pack import PackResult


@define_command("pack", example="fr-edge pack mine.bundle --out mine.frb --sign maker.key")
@options.bundle
@click.option("--out", required=True, metavar="FILE.frb", help="The file to write.")
@options.sign(what="Sign the pack with this ed25519 private key")
@click.option("--keep-names", is_flag=True, help="Keep reports that name people's files.")
@click.option("--no-reports", is_flag=True, help="Leave out the reports and report.html.")
def command(
    output: Output, bundle: str, out: str, sign: str | None, keep_names: bool, no_reports: bool
) -> None:
    """Write a bundle as one file, signed.

    The file is an uncompressed tar of the files that the manifest lists, with a list of parts
    (CycloneDX) of what made them; the same content gives the same bytes. Reports that name people's
    files stay at home. Without --sign it is not signed, and `fr-edge unpack` takes it only with
    --allow-unsigned.
    """
    from ..bundle.pack import pack
    from ..documents import to_builtins

    key = options.load_signing_key(sign)
    result = pack(bundle, out, key, reports=not no_reports, names=keep_names)
    trust = Path(sign).with_suffix(".pub") if sign else None
    output.result(to_builtins(result), "\n".join(_lines(result, trust)))


def _lines(result: "PackResult", trust: Path | None) -> Iterator[str]:
    yield f"{result.file}: {result.files} files, {size_text(result.size)}, sha256 {result.sha256}"
    if result.signed_by:
        yield f"  signed by {', '.join(result.signed_by)}"
    else:
        yield "  not signed: add --sign KEY, or unpack it with --allow-unsigned"
    for name, reason in result.left_out.items():
        yield f"  left out: {name}: {reason}"
    if trust:
        yield f"next, elsewhere: fr-edge unpack {result.file} --out DIR --trust {trust}"
