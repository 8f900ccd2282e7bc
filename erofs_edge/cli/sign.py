# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge sign`: sign the output of a build or another tool, directly or in two steps for an offline key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from erofs_edge.cli.output import emit_json, json_option, note, table
from erofs_edge.cli.to_file import write_file
from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from erofs_edge.trust.key import Signer

FORMS = click.Choice(["pkcs7", "verity-signature"])


class _How(NamedTuple):
    """The properties of a signature; the options have the same names."""

    certificate: Path | None
    epoch: int | None
    form: str


@click.command()
@click.argument("targets", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--key",
    metavar="URI|PUB",
    help="The URI of the key; with --prepare and --attach, the file of the public key (PEM).",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The certificate of the key.  [default: one made from the key]",
)
@click.option(
    "--epoch",
    type=int,
    metavar="SECONDS",
    help="Time in seconds since 1970: when the certificate that is made becomes valid (default: 0), or when the one of"
    " --certificate must be valid (default: now).",
)
@click.option(
    "--form",
    type=FORMS,
    default="pkcs7",
    show_default=True,
    help="The kind of signature: detached PKCS#7, or the JSON that systemd reads.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The signature to write.  [default: IMAGE.p7s, or IMAGE.verity-sig.json]",
)
@click.option("--root-hash", metavar="HEX", help="Sign this root hash instead of an image's.")
@click.option("--prepare", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Sign nothing; put the digests to sign into FOLDER.")  # fmt: skip
@click.option("--attach", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Store TARGETS as the signatures of the digests in FOLDER, or use the stored ones.")  # fmt: skip
@json_option
def sign(
    targets: tuple[Path, ...],
    key: str | None,
    certificate: Path | None,
    epoch: int | None,
    form: str,
    output: Path | None,
    root_hash: str | None,
    prepare: Path | None,
    attach: Path | None,
    as_json: bool,
) -> None:
    """Sign the root hash of a verity image, or a release.json.

    The signature is a detached PKCS#7 that the kernel and systemd accept.

    \b
    Example:
      erofs-edge sign system.img --key file:release.pem

    For a key on a machine without a network:

    \b
      1. erofs-edge sign IMAGE --key PUB --prepare FOLDER
         puts the digests to sign into FOLDER, each in a file of 32 bytes.
      2. On the other machine, sign each digest (PKCS#1 v1.5, or ECDSA over the digest).
      3. erofs-edge sign --attach FOLDER --key PUB SIGNATURE…
         checks the signatures and stores them in FOLDER.
      4. erofs-edge sign IMAGE --key PUB --attach FOLDER
         or a build with --key offline:FOLDER?public-key=PUB uses them.
    """
    if key is None:
        raise UsageError("--key is missing", hint="dev:NAME, file:PATH, pkcs11:…, or a public key for --prepare")
    if prepare and attach:
        raise UsageError("--prepare and --attach are two steps: give one of them")
    if attach and targets and not _is_content(targets[0]):
        record = _store(attach, key, targets)
    else:
        how = _How(certificate, epoch, form)
        record = _sign(targets, root_hash, key, how, output, prepare or attach, prepare is not None)
    if as_json:
        emit_json(record)
    else:
        table((name.replace("_", " "), value) for name, value in record.items() if not isinstance(value, list))
        for digest in record.get("waiting", []):  # type: ignore[attr-defined]
            click.echo(digest)


def _store(folder: Path, key: str, signatures: tuple[Path, ...]) -> dict[str, object]:
    from erofs_edge.trust.key import read_public_key
    from erofs_edge.trust.offline import attach, waiting

    signed = attach(folder, read_public_key(Path(key)), [path.read_bytes() for path in signatures])
    note(f"{len(signed)} signature(s) stored")
    return {"folder": str(folder), "signed": signed, "waiting": waiting(folder)}


def _sign(
    targets: tuple[Path, ...],
    root_hash: str | None,
    key: str,
    how: _How,
    output: Path | None,
    folder: Path | None,
    preparing: bool,
) -> dict[str, object]:
    from erofs_edge.trust.offline import SignaturesMissingError, waiting
    from erofs_edge.trust.signer import open_signer

    if len(targets) + (root_hash is not None) != 1:
        raise UsageError("what to sign? Give exactly one of IMAGE, release.json and --root-hash")
    if root_hash is not None:
        root_hash = _digest(root_hash)
    signer = open_signer(f"offline:{folder}?public-key={key}" if folder else key)
    target = targets[0] if targets else None
    if target is not None and target.is_dir():
        hint = f"name its image, or its record: {target / 'release.json'}"
        raise UsageError("this is a folder, not something to sign", where=str(target), hint=hint)
    if target is not None and target.suffix != ".json":
        root_hash = _root_hash_of(target)
    content = root_hash.encode() if root_hash else (target or Path()).read_bytes()
    if output is None:
        if target is None:
            raise UsageError("--root-hash needs --output")
        output = target.with_name(target.name + (".p7s" if how.form == "pkcs7" else ".verity-sig.json"))
    try:
        data, fingerprint = _signed(signer, content, how, root_hash)
    except SignaturesMissingError:
        if not preparing or folder is None:
            raise
        return {"folder": str(folder), "waiting": waiting(folder)}
    write_file(output, data, "the signature")
    record: dict[str, object] = {"signature": str(output), "key": signer.name, "certificate_sha256": fingerprint}
    return record | ({"root_hash": root_hash} if root_hash else {}) | {"development": signer.development}


def _signed(signer: Signer, content: bytes, how: _How, root_hash: str | None) -> tuple[bytes, str]:
    import time

    from erofs_edge.trust.certificate import read_certificate, self_signed
    from erofs_edge.trust.key import sign as sign_data
    from erofs_edge.trust.offline import SignaturesMissingError
    from erofs_edge.trust.root_hash import sign_detached, verity_signature_json

    try:
        if how.certificate:
            known = read_certificate(how.certificate, signer, int(time.time()) if how.epoch is None else how.epoch)
        else:
            known = self_signed(signer, how.epoch or 0)
    except SignaturesMissingError:
        sign_data(signer, content)  # prepare this digest too, so that both are signed in one round
        raise
    if how.form == "pkcs7":
        return sign_detached(content, signer, known), known.fingerprint
    if root_hash is None:
        raise UsageError("--form verity-signature signs root hashes only", hint="use --form pkcs7")
    return verity_signature_json(bytes.fromhex(root_hash), signer, known), known.fingerprint


def _root_hash_of(image: Path) -> str:
    """Return the root hash of an image followed by its tree, computed from the data: the tree itself is not trusted."""
    import os

    from erofs_edge.verify.system import find_tree
    from erofs_edge.verity.tree import read_superblock, root_hash

    at = find_tree(image)
    if at is None:
        raise UsageError("no hash tree found", where=str(image), hint=f"erofs-edge verity format {image}")
    with image.open("rb") as file:
        fd = file.fileno()
        return root_hash(read_superblock(image, at), lambda offset, length: os.pread(fd, length, offset)).hex()


def _digest(text: str) -> str:
    """Return the given root hash in lower case, as it is signed. Raises UsageError if it is not one."""
    try:
        size = len(bytes.fromhex(text))
    except ValueError:
        size = 0
    if size not in (32, 64):
        raise UsageError(
            f"--root-hash: {text[:136]!r} is not a root hash", hint="64 hexadecimal digits for sha256, 128 for sha512"
        )
    return text.lower()


def _is_content(path: Path) -> bool:
    """Whether a target is something to sign; signatures are short and not JSON."""
    return path.suffix == ".json" or path.stat().st_size > 16384
