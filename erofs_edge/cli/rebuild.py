# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge rebuild`: build a release again and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, step, table
from erofs_edge.cli.to_file import check_output, write_file
from erofs_edge.errors import FormatError, ReproducibilityError, UsageError, VerificationError, place_within

if TYPE_CHECKING:
    from erofs_edge.release.rebuild import Rebuilt
    from erofs_edge.trust.signer import Signer


@click.command()
@click.argument("release", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the rebuilt files in this folder."
)
@click.option("--packages", type=click.Path(exists=True, path_type=Path, file_okay=False), metavar="FOLDER",
              help="Look for .deb files here before asking the mirror.")  # fmt: skip
@click.option(
    "--variations", is_flag=True, help="Also rebuild under varied conditions (locale, umask, CPUs …), one at a time."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Number of threads; the output is the same for any number.")
@click.option("--attest", metavar="URI", help="Attest that the result is identical, signed with this key of yours.")
@click.option("--attestation", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The attestation file to write; if it exists, your signature is added to it.")  # fmt: skip
@json_option
def rebuild(
    release: Path,
    output: Path | None,
    packages: Path | None,
    variations: bool,
    jobs: int | None,
    attest: str | None,
    attestation: Path | None,
    as_json: bool,
) -> None:
    """Rebuild RELEASE from the inputs that it pins and compare every file. Exits with 5 if one differs.

    No private key is needed: signatures are taken from the release if they match what was built.

    \b
    Example:
      erofs-edge rebuild release/v1
    """
    from erofs_edge.build.pipeline import BuildOptions
    from erofs_edge.release.rebuild import rebuild as again
    from erofs_edge.release.variations import VARIATIONS, rebuild_varied
    from erofs_edge.trust.signer import open_signer
    from erofs_edge.writing import scratch_folder

    if (attest is None) != (attestation is None):
        raise UsageError("--attest and --attestation must be given together")
    signer = open_signer(attest) if attest is not None else None
    if attestation is not None:
        check_output(attestation)
    with scratch_folder("rebuild") as folder:
        out = output or folder / "out"
        results = {"": again(release, out, packages=packages, options=BuildOptions(out=out, jobs=jobs), step=step)}
        for name in VARIATIONS if variations else ():
            with step(f"variation: {name}"):
                results[name] = rebuild_varied(release, folder / name, name)
        _show(release, results, output, as_json=as_json)
        if signer is not None and attestation is not None:
            _attest(release, results[""], signer, attestation)


def _show(release: Path, results: dict[str, Rebuilt], output: Path | None, *, as_json: bool) -> None:
    same = all(result.same for result in results.values())
    if as_json:
        emit_json({
            "release": str(release),
            "identical": same,
            "builds": [
                {"variation": name or None, "identical": one.same, "error": one.error or None, "files": [
                    {"name": v.name, "identical": v.same, "released": v.released, "rebuilt": v.rebuilt}
                    for v in one.verdicts
                ]}
                for name, one in results.items()
            ],
        })  # fmt: skip
    else:
        table(
            [("same" if v.same else "DIFFERS", v.name, v.released[:16], v.rebuilt[:16]) for v in results[""].verdicts],
            header=("", "file", "released", "rebuilt"),
        )
        for name, result in results.items():
            if name:
                note(f"variation {name}: {'the same' if result.same else 'DIFFERS'}")
            if result.error:
                note(result.error)
    if not same:
        wrong = {v.name for result in results.values() for v in result.verdicts if not v.same}
        errors = [f"variation {name}: {one.error}" if name else one.error for name, one in results.items() if one.error]
        raise ReproducibilityError(
            f"{len(wrong)} file(s) differ: {', '.join(sorted(wrong)[:5])}" if wrong else "; ".join(errors[:3]),
            where=str(release),
            hint=f"to see where and why: {_comparison(release, output)}" if wrong else None,
        )


def _comparison(release: Path, output: Path | None) -> str:
    if output is None:
        return "rebuild with -o FOLDER, then erofs-edge diff RELEASE FOLDER/made"
    return f"erofs-edge diff {release} {output / 'made'} (signatures that the release does not have are blank there)"


def _attest(release: Path, result: Rebuilt, signer: Signer, path: Path) -> None:
    from erofs_edge.build.record import read_release
    from erofs_edge.release.attestation import attestation, same_claim
    from erofs_edge.trust.dsse import add_signature, seal

    statement = attestation(result, read_release(release))
    if path.exists():
        try:
            envelope = add_signature(path.read_bytes(), signer, lambda said: same_claim(said, statement))
        except (FormatError, VerificationError) as error:
            place_within(error, path)
            raise
    else:
        envelope = seal(statement, signer)
    write_file(path, envelope, "the attestation")
    note(f"attested by '{signer.name}': {path}")
