# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge verify`: verify everything from a public key to the last block, and print one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from erofs_edge.cli.output import emit_json, json_option, note, table
from erofs_edge.cli.remote import PathOrAddress, reached
from erofs_edge.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from erofs_edge.trust.key import PublicKey
    from erofs_edge.verify.checks import Verdict


@click.command()
@click.argument("target", metavar="OUT|IMAGE|DEVICE|URI", type=PathOrAddress(exists=True, path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="PUB",
              help="The public key or its certificate, in PEM, from a source that you trust.")  # fmt: skip
@click.option(
    "--signature",
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The signature of an image's root hash (PKCS#7 or JSON) or of a record.  [default: the file beside it]",
)
@click.option(
    "--sigstore",
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    metavar="POLICY",
    help="Also require a Sigstore bundle over release.json that POLICY accepts (`keys sigstore`).",
)
@click.option(
    "--attestation",
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also require rebuilders' signatures in FILE (`rebuild --attest`), those of every --attested-by.",
)
@click.option(
    "--attested-by",
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    multiple=True,
    metavar="PUB",
    help="With --attestation, the public key of a rebuilder; may be repeated.",
)
@click.option("--jobs", type=click.IntRange(1), help="Number of threads.  [default: number of CPUs]")
@json_option
def verify(
    target: Path | str,
    key: Path,
    signature: Path | None,
    sigstore: Path | None,
    attestation: Path | None,
    attested_by: tuple[Path, ...],
    jobs: int | None,
    as_json: bool,
) -> None:
    """Verify everything that a key vouches for: partition table, vbmeta or FIT, root hash, hash tree, file system.

    The target is the folder of a build, a disk or disk image, a FIT, a vbmeta image, a partition with an AVB footer, a
    system image with its hash tree, or a release.json; it may also be an export of another machine
    (nbd://HOST/EXPORT, provision://HOST). Exits with 4 if anything does not match or is not signed.

    \b
    Example:
      erofs-edge verify out/qemu-aarch64 --key out/qemu-aarch64/sign.pub.pem
    """
    from erofs_edge.trust.key import read_public_key
    from erofs_edge.trust.sigstore import read_policy
    from erofs_edge.verify.path import verify_path

    public = read_public_key(key)
    policy = None if sigstore is None else read_policy(sigstore)
    if policy is not None and isinstance(target, str):
        raise UsageError("--sigstore needs the folder of a build, not an address", where=target)
    rebuilders = _rebuilders(target, attestation, attested_by)
    with reached(target) as place:
        name = _export_name(target) if isinstance(target, str) else None
        verdict = verify_path(place, public, name=name, signature=signature, jobs=jobs, policy=policy)
        if attestation is not None and isinstance(place, Path):
            _check_rebuilders(place, attestation, rebuilders, verdict)
    if as_json:
        emit_json(_record(str(target), public, verdict))
    else:
        _show(verdict)
    if not verdict.ok:
        first = verdict.failed[0] if verdict.failed else None
        raise VerificationError(
            f"{len(verdict.failed)} of {len(verdict.checks)} checks failed: {first.what}: {first.error}"
            if first
            else "nothing was checked",
            where=str(target),
            hint=first.hint if first else None,
        )


def _rebuilders(target: Path | str, attestation: Path | None, keys: tuple[Path, ...]) -> list[PublicKey]:
    """Return the keys that must have signed the attestation. Raises UsageError if keys or attestation are given
    alone."""
    from erofs_edge.trust.key import read_public_key

    if (attestation is None) != (not keys):
        raise UsageError("--attestation and --attested-by must be given together")
    if attestation is not None and not (isinstance(target, Path) and target.is_dir()):
        raise UsageError("--attestation needs the folder of a release", where=str(target))
    return [read_public_key(path) for path in keys]


def _check_rebuilders(release: Path, attestation: Path, keys: list[PublicKey], verdict: Verdict) -> None:
    from erofs_edge.release.attestation import check_attestation

    for key in keys:
        with verdict.check(f"{attestation.name}: identical rebuild", f"key '{key.name}'"):
            check_attestation(release, attestation, key)


def _record(target: str, public: PublicKey, verdict: Verdict) -> dict[str, Any]:
    """Return the record that --json prints."""
    from erofs_edge.trust.key import algorithm, fingerprint

    names = ("what", "against", "digest", "ok", "error", "hint")
    return {
        "target": target,
        "key": {"name": public.name, "type": algorithm(public.public_key), "sha256": fingerprint(public)},
        "ok": verdict.ok,
        "checks": [{name: getattr(check, name) for name in names} for check in verdict.checks],
    }


def _export_name(address: str) -> str:
    """Return the name with which the table's rows begin, if the target is not a disk."""
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(address).path.strip("/")) or "export"


def _show(verdict: Verdict) -> None:
    rows = [
        ("ok" if check.ok else "FAILED", check.what, check.against, (check.digest or "")[:32])
        for check in verdict.checks
    ]
    table(rows, header=("", "what", "against", "digest"))
    for check in verdict.failed:
        note(f"{check.what}: {check.error}")
