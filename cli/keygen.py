"""`fr-edge keygen`: a key pair to sign bundles with."""

import click

from .command import define_command
from .output import Output


@define_command("keygen", example="fr-edge keygen office")
@click.argument("name", metavar="NAME")
@click.option(
    "--passphrase", is_flag=True, help="Encrypt the private key; the passphrase is asked for."
)
def command(output: Output, name: str, passphrase: bool) -> None:
    """Make an ed25519 key pair to sign bundles with.

    Writes NAME.key, the private key, which only you can read, and NAME.pub, the public key, which
    devices trust. Existing files are never overwritten. Ed25519 keys of `ssh-keygen -t ed25519` or
    OpenSSL do as well. The passphrase comes from FR_EDGE_KEY_PASSPHRASE where that is set.
    """
    from pathlib import Path

    from ..bundle.keys import make_key_pair

    private, public = Path(f"{name}.key"), Path(f"{name}.pub")
    if name.rpartition("/")[2] in ("", ".", ".."):
        raise click.UsageError(f"NAME is a file's name without its ending, found {name!r}")
    key = make_key_pair(private, public, _new_passphrase() if passphrase else b"")
    lines = [
        f"{private}: the private key; keep it, and give it to no one",
        f"{public}: the public key, {key.fingerprint}",
        f"next: fr-edge pack BUNDLE --out FILE.frb --sign {private}",
    ]
    document = {
        "private": str(private),
        "public": str(public),
        "fingerprint": key.fingerprint,
        "encrypted": passphrase,
    }
    output.result(document, "\n".join(lines))


def _new_passphrase() -> bytes:
    import os

    from ..bundle.keys import PASSPHRASE

    text = os.environ.get(PASSPHRASE) or click.prompt(
        "passphrase", hide_input=True, confirmation_prompt=True, err=True
    )
    return str(text).encode()
