"""`fr-edge build-engine`: an engine for this machine."""

import click

from . import options
from .output import Output, size_text
from .output import command as make


@make("build-engine")
@options.bundle
@click.option("--int8", "precision", flag_value="int8", help="INT8 where it pays.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision.")
@click.option("--fp32", "precision", flag_value="fp32", help="Single precision.")
@options.backend
@options.faces(what="Calibrate on these first if the bundle is not calibrated")
def command(
    output: Output, bundle: str, precision: str | None, backend: str, faces: str | None
) -> None:
    """Build an engine for this machine into BUNDLE.

    An engine runs on the kind of machine and the library version it was built with.
    """
    from ..faces.sources import open_faces
    from ..runtime.build import build_engine

    if precision is None:
        raise click.UsageError("say which engine: --int8, --fp16 or --fp32")
    source = open_faces(faces) if faces else None
    built = build_engine(bundle, precision, backend, source, output.track)
    for note in built.notes:
        output.note(note)
    counts = ", ".join(f"{count} {name.upper()}" for name, count in built.layers.items() if count)
    lines = [
        f"{bundle}/{built.engine}: {built.backend}, {size_text(built.size)},"
        f" layers with weights: {counts}",
        f"next: fr-edge verify {bundle} --engine {precision}",
    ]
    document = {
        "engine": built.engine,
        "backend": built.backend,
        "precision": built.precision,
        "layers": built.layers,
        "integer_kernels": built.integer_kernels,
        "size": built.size,
        "notes": built.notes,
    }
    output.result(document, "\n".join(lines))
