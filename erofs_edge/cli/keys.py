# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge keys`: make, list, show and rotate signing keys; policies for Sigstore bundles."""

from __future__ import annotations

from pathlib import Path

import click

from erofs_edge.cli.output import emit_json, json_option, note, table
from erofs_edge.errors import ErofsEdgeError

KINDS = click.Choice(["rsa2048", "rsa3072", "rsa4096", "ecdsa-p256"])


@click.group()
def keys() -> None:
    """Make, list, show and rotate signing keys, and write policies for Sigstore bundles.

    Other commands name keys by URI: dev:NAME, file:PATH, pkcs11:…, command:…, offline:… (docs/signing.md has them all).
    """


@keys.command()
@click.argument("name")
@click.option(
    "--type",
    "kind",
    type=KINDS,
    default="rsa2048",
    show_default=True,
    help="The kind of key; it must be one that the board's boot loader supports.",
)
@click.option(
    "--encrypt",
    is_flag=True,
    help="Encrypt the key with a passphrase (prompted for, or from EROFS_EDGE_PASSPHRASE[_FD]).",
)
@click.option("--development", is_flag=True, help="Mark the key as a development key, which releases refuse.")
@json_option
def new(name: str, kind: str, encrypt: bool, development: bool, as_json: bool) -> None:
    """Make a private key and, beside it, its public key.

    Only you can read the private key. NAME is a name in the key folder, or a path that ends with .pem.

    \b
    Example:
      erofs-edge keys new ./release.pem --type ecdsa-p256 --encrypt
    """
    from erofs_edge.trust.files import make_key
    from erofs_edge.trust.passphrase import passphrase

    path = _path(name)
    if path.exists():
        raise ErofsEdgeError(
            "the key already exists", where=str(path), hint=f"erofs-edge keys rotate {name}, or choose another name"
        )
    secret = passphrase(None, path.name, confirm=True) if encrypt else None
    make_key(path, kind, secret=secret, development=development)
    _report(_written(path), as_json)


@keys.command("list")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="The folder to list.  [default: the key folder]",
)
@json_option
def list_(folder: Path | None, as_json: bool) -> None:
    """List the private keys in a folder."""
    from erofs_edge.trust.files import keys_directory, list_keys

    found = list_keys(folder or keys_directory())
    if as_json:
        emit_json(found)
        return
    rows = [
        (
            key.name,
            key.kind or "encrypted",
            (key.fingerprint or "")[:16],
            "development" if key.development else "",
            "" if key.private else "OTHERS CAN READ IT",
        )
        for key in found
    ]
    if rows:
        table(rows, header=("name", "type", "sha256", "", ""))
    for key in found:
        if not key.private:
            note(f"note: others can read a private key: chmod 600 {key.path}")


@keys.command()
@click.argument("uri")
@click.option(
    "--certificate", is_flag=True, help="Print the key's self-signed certificate instead, as builds embed it."
)
@click.option(
    "--epoch",
    type=int,
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="When the certificate becomes valid, in seconds since 1970.",
)
@json_option
def show(uri: str, certificate: bool, epoch: int, as_json: bool) -> None:
    """Print the public key of a key.

    URI is any key URI, a name in the key folder, or a path that ends with .pem.
    """
    from erofs_edge.trust.certificate import self_signed
    from erofs_edge.trust.key import algorithm, fingerprint, public_key_pem
    from erofs_edge.trust.signer import open_signer

    # showing a key must not create one because of a misspelt name
    signer = open_signer(uri if ":" in uri else f"file:{_path(uri)}", make=False)
    record = {
        "name": signer.name,
        "type": algorithm(signer.public_key),
        "sha256": fingerprint(signer),
        "development": signer.development,
        "public_key": public_key_pem(signer).decode(),
    }
    if certificate:
        record["certificate"] = self_signed(signer, epoch).pem.decode()
    if as_json:
        emit_json(record)
        return
    click.echo(record["certificate" if certificate else "public_key"], nl=False)
    note(f"{record['name']}: {record['type']}, sha256 {record['sha256']}")
    if signer.development:
        note("note: this is a development key: it protects nothing")


@keys.command()
@click.argument("name")
@click.option("--type", "kind", type=KINDS, help="The kind of the new key.  [default: as the old one]")
@click.option(
    "--encrypt/--no-encrypt",
    default=None,
    help="Whether to encrypt the new key with a passphrase.  [default: as the old one]",
)
@json_option
def rotate(name: str, kind: str | None, encrypt: bool | None, as_json: bool) -> None:
    """Replace a key with a new one and keep the old one.

    The old key's file is renamed to include its fingerprint. Devices trust the key that they were built with: first
    ship a release that is signed with the old key and brings them the new public key, and only then sign with the new
    key.
    """
    from erofs_edge.trust.files import is_encrypted, rotate_key
    from erofs_edge.trust.passphrase import passphrase

    path = _path(name)
    encrypt = is_encrypted(path) if encrypt is None else encrypt
    secret = passphrase(None, f"the new {path.name}", confirm=True) if encrypt else None
    kept = rotate_key(path, kind=kind, secret=secret)
    _report(_written(path) | {"kept": str(kept)}, as_json)


@keys.command()
@click.option("--root", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
              metavar="FILE", help="The trusted_root.json of a Sigstore instance (authorities, logs).")  # fmt: skip
@click.option(
    "--identity", required=True, metavar="TEXT", help="The identity in the certificate: a mail address, or a workflow."
)
@click.option("--issuer", required=True, metavar="URL", help="The issuer that vouches for the identity.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="POLICY",
    help="The policy file to write.",
)
@json_option
def sigstore(root: Path, identity: str, issuer: str, output: Path, as_json: bool) -> None:
    """Write a policy that says whose Sigstore bundles to accept.

    `verify`, `flash --from` and `channel add` use it (their option --sigstore).
    """
    import json

    from erofs_edge.cli.to_file import write_file
    from erofs_edge.errors import FormatError, SourceError
    from erofs_edge.trust.sigstore import Policy, check_root, parse_policy

    try:
        policy = Policy(identity, issuer, json.loads(root.read_bytes()))
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(root)) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a trusted root: {error}", where=str(root)) from error
    check_root(parse_policy(policy.encode(), str(root)), str(root))
    write_file(output, policy.encode(), "the policy")
    _report({"policy": str(output), "identity": identity, "issuer": issuer}, as_json)


def _path(name: str) -> Path:
    """Return the file of a key: a path that ends with .pem, or a name in the key folder."""
    from erofs_edge.trust.files import check_name, keys_directory

    return Path(name) if name.endswith(".pem") else keys_directory() / f"{check_name(name)}.pem"


def _written(path: Path) -> dict[str, object]:
    """Write the public key beside a new key, as an encrypted key hides it, and return what to print."""
    from erofs_edge.cli.to_file import write_file
    from erofs_edge.trust.files import file_key
    from erofs_edge.trust.key import algorithm, fingerprint, public_key_pem

    signer = file_key(path)
    public = path.with_suffix(".pub")
    write_file(public, public_key_pem(signer), "the public key")
    return {
        "uri": f"file:{path}",
        "public_key": str(public),
        "type": algorithm(signer.public_key),
        "sha256": fingerprint(signer),
        "development": signer.development,
    }


def _report(record: dict[str, object], as_json: bool) -> None:
    if as_json:
        emit_json(record)
    else:
        table(record.items())
