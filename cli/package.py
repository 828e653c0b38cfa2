"""`fr-edge package`: a bundle as what another runtime loads, with golden faces that prove it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from . import options
from .command import define_command
from .output import Output, size_text

if TYPE_CHECKING:
    from ..runtime.packages.package import PackageResult

_TARGETS = ("onnx", "cpp", "python", "triton", "deepstream")


@define_command("package", example="fr-edge package mine.bundle --for python --out mine.package")
@options.bundle
@click.option(
    "--for", "target", required=True, type=click.Choice(_TARGETS), help="What is to load it."
)
@click.option("--out", required=True, metavar="DIR", help="The folder to make.")
@click.option(
    "--engine",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Which of the bundle's networks.",
)
def command(output: Output, bundle: str, target: str, out: str, engine: str) -> None:
    """Make a package of a bundle for another runtime.

    A package holds the network with its input contract inside, a sample program, drawn golden faces
    with the bundle's embeddings of them, and a program that checks these. It needs no fr-edge where it
    is used. `fr-edge verify --package DIR` runs the check and writes a certificate.
    """
    from ..documents import to_builtins
    from ..runtime.packages.package import package

    result = package(bundle, target, out, engine)
    output.result(to_builtins(result), "\n".join(_lines(result)))


def _lines(result: "PackageResult") -> Iterator[str]:
    manifest = result.manifest
    yield f"{result.out}: {len(manifest.files) + 1} files, {size_text(result.size)}"
    for kind, cosine in manifest.measured.items():
        yield f"  {kind} input: lowest cosine to the bundle's embeddings {cosine:.6f}"
    for name, reason in manifest.left_out.items():
        yield f"  left out: {name}: {reason}"
    for name, report in manifest.bundle.certificates.items():
        yield f"  the bundle's {name}: {report['stale'] or report['verdict']}"
    yield f"next: fr-edge verify --package {result.out}"
