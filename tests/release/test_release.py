# SPDX-License-Identifier: Apache-2.0
"""Releases: made, remade by others without the key, and every kind of sabotage found and named."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa

from erofs_edge.build.inputs import Inputs, gather
from erofs_edge.build.pipeline import BuildOptions, build_board
from erofs_edge.build.record import outputs, read_release, write_json
from erofs_edge.cli.rebuild import rebuild as rebuild_command
from erofs_edge.errors import ErofsEdgeError, FormatError, ReproducibilityError, SourceError, VerificationError
from erofs_edge.release.archive import ARCHIVE, input_files, unpack_archive, write_archive
from erofs_edge.release.attestation import attestation
from erofs_edge.release.bundles import BUNDLES, RAUC, Wish, write_bundles
from erofs_edge.release.forecast import FORECAST, forecast, forecast_record
from erofs_edge.release.gate import PROMISES, Wanted, check_release
from erofs_edge.release.make import make_release, refuse_dirty
from erofs_edge.release.papers import CHECKSUMS, PROVENANCE, write_papers
from erofs_edge.release.rebuild import Rebuilt, add_packages, compare, rebuild
from erofs_edge.release.replay import ReplaySigner, replay_signer
from erofs_edge.release.variations import VARIATIONS, rebuild_varied
from erofs_edge.report.facts import collect
from erofs_edge.report.since import SINCE
from erofs_edge.sources.cache import Cache
from erofs_edge.trust.dsse import unseal
from erofs_edge.trust.key import BlankSignature, KeySigner
from erofs_edge.trust.signer import Signer
from erofs_edge.verify.path import verify_path

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("release")]


# a product whose system is a handful of packages on a small disk: releases and rebuilds of it cost a quarter
PACKAGES = ["base-files", "base-passwd", "dash", "grep", "hostname", "iputils-ping", "less", "sed", "tzdata"]
BOARD = """
board: small
extends: qemu-aarch64.yaml
disk:
  size: 192M
  partitions:
    boot: {size: 48M}
    system: {size: 24M, content: ../manifests/small.yaml}
"""
SMALL = "boards/small.yaml"


@dataclass
class Released:
    folder: Path
    signer: KeySigner


@pytest.fixture(scope="module")
def product(stock: Callable[[str], Path], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board and its manifests in a folder of their own, with the locks that the stock build used."""
    top = tmp_path_factory.mktemp("product")
    for name in ("boards", "manifests"):
        shutil.copytree(repository / name, top / name)
    for lock in (stock("qemu-aarch64") / "locks").glob("*.lock"):
        shutil.copy(lock, next(top.rglob(lock.name)))
    (top / SMALL).write_text(BOARD)
    (top / "manifests/small.yaml").write_text(f"system: small\npackages: [{', '.join(PACKAGES)}]\n")
    for source, target in (("boards/qemu-aarch64", "boards/small"), ("manifests/edge-base", "manifests/small")):
        lock = json.loads((top / f"{source}.lock").read_text()) | {"name": "small"}
        if target.startswith("manifests"):
            lock["requested"] = {"system": PACKAGES}
            lock["packages"] = {"system": [one for one in lock["packages"]["system"] if one["name"] in PACKAGES]}
        (top / f"{target}.lock").write_text(json.dumps(lock))
    return top


@pytest.fixture(scope="module")
def released(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A release of the small product. `make_release` refuses its open boot loader; everything else is the same."""
    return made(product / SMALL, tmp_path_factory.mktemp("release") / "out")


@pytest.fixture(scope="module")
def stock_release(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """The same of the stock board, for long tests."""
    return made(product / "boards/qemu-aarch64.yaml", tmp_path_factory.mktemp("stock") / "out")


def made(board: Path, out: Path) -> Released:
    signer = KeySigner("owner", rsa.generate_private_key(65537, 2048))

    def papers(work: Path, inputs: Inputs, signer: Signer) -> None:
        """With what `make_release` writes when it is told of earlier releases."""
        write_json(work / FORECAST, forecast_record([forecast(work, work)]))
        write_json(work / SINCE, collect(work).after(collect(work)).record())
        write_bundles(work, Wish(True, "https://host.example/new"), signer)
        write_papers(work, inputs, signer)

    build_board(board, BuildOptions(out=out, signer=signer, papers=papers))
    return Released(out, signer)


def failed(released: Released) -> list[str]:
    return [check.what for check in verify_path(released.folder, released.signer).failed]


def test_a_release_holds_what_it_lists(released: Released) -> None:
    record = read_release(released.folder)
    assert {"bom.cdx.json", "bom.spdx.json", PROVENANCE, CHECKSUMS, ARCHIVE, "REBUILD.md"} <= set(record["files"])
    done = subprocess.run(["sha256sum", "-c", "--quiet", CHECKSUMS], cwd=released.folder, check=False)
    assert done.returncode == 0
    assert failed(released) == []
    statement = unseal((released.folder / PROVENANCE).read_bytes(), released.signer)
    assert statement.subjects["system.img"] == record["files"]["system.img"]["sha256"]
    dependencies = statement.predicate["buildDefinition"]["resolvedDependencies"]
    assert {one["name"] for one in dependencies} >= {*PACKAGES, ARCHIVE} and len(dependencies) > len(PACKAGES) + 1
    assert all(len(one["digest"]["sha256"]) == 64 for one in dependencies)
    assert "Changes since the last release" in (released.folder / "report.html").read_text()
    text = json.dumps(statement.predicate)
    assert str(released.folder.parent) not in text and "/root" not in text, "no folder of the machine that builds"


def test_others_make_the_same_without_the_key_and_without_a_network(
    released: Released, edge: str, tmp_path: Path
) -> None:
    """In a network namespace of its own, with an empty cache: the packages that the locks pin are all that there is."""
    debs, again = tmp_path / "debs", tmp_path / "again"
    debs.mkdir()
    for name in pinned(released.folder, tmp_path):
        (debs / f"{name}.deb").symlink_to(Cache().blob_path(name))
    environment = os.environ | {"EROFS_EDGE_CACHE": str(tmp_path / "cache")}
    command = ["unshare", "-rn", edge, "rebuild", str(released.folder), "-o", str(again), "--packages", str(debs)]
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identical"]
    result = Rebuilt(again, compare(released.folder, read_release(released.folder), again / "made"))
    assert result.same, [one.name for one in result.verdicts if not one.same]
    assert {one.name for one in result.verdicts} >= {
        "release.json",
        "release.json.p7s",
        "disk.img",
        FORECAST,
        SINCE,
        BUNDLES,
        RAUC,
    }
    statement = attestation(result, read_release(released.folder))
    assert statement.predicate["verdict"] == "identical" and statement.subjects["disk.img"] == result.verdicts[
        [one.name for one in result.verdicts].index("disk.img")
    ].released  # fmt: skip
    with pytest.raises(ErofsEdgeError, match="not empty"):
        rebuild(released.folder, again)
    (debs / f"{name}.deb").unlink()
    shutil.rmtree(tmp_path / "cache")
    command[6] = str(tmp_path / "third")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "cannot reach the mirror" in done.stderr, done.stderr


def pinned(release: Path, work: Path) -> list[str]:
    """SHA-256 of each package of the locks in a release."""
    unpack_archive(release / ARCHIVE, work / "unpacked")
    locks = [json.loads(path.read_text()) for path in (work / "unpacked").rglob("*.lock")]
    return [one["sha256"] for lock in locks for packages in lock["packages"].values() for one in packages]


def test_a_machine_that_is_different(released: Released, tmp_path: Path) -> None:
    """One of the variations; the long run has all of them."""
    result = rebuild_varied(released.folder, tmp_path / "varied", "order")
    assert result.same, result.error or [one.name for one in result.verdicts if not one.same]


@pytest.mark.long
@pytest.mark.parametrize("variation", VARIATIONS)
def test_every_machine_that_is_different(stock_release: Released, tmp_path: Path, variation: str) -> None:
    result = rebuild_varied(stock_release.folder, tmp_path / "varied", variation)
    assert result.same, result.error or [one.name for one in result.verdicts if not one.same]


@pytest.fixture
def mine(released: Released, tmp_path: Path) -> Released:
    """A copy to spoil; disk image and bundles, which no sabotage here touches, are links."""
    large = [path.name for path in released.folder.iterdir() if path.suffix in (".raucb", ".raw")] + ["disk.img"]
    shutil.copytree(released.folder, tmp_path / "mine", ignore=shutil.ignore_patterns(*large))
    for name in large:
        (tmp_path / "mine" / name).hardlink_to(released.folder / name)
    return Released(tmp_path / "mine", released.signer)


@pytest.mark.parametrize("name", ["system.img", ARCHIVE, PROVENANCE, "contents.json"])
def test_a_flipped_byte_is_found_and_named(mine: Released, name: str) -> None:
    data = bytearray((mine.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (mine.folder / name).write_bytes(data)
    assert name in failed(mine)


def test_a_swapped_signature(mine: Released) -> None:
    shutil.copy(mine.folder / "system.root-hash.p7s", mine.folder / "release.json.p7s")
    assert failed(mine)[0] == "release.json"


def test_files_missing_and_added(mine: Released) -> None:
    (mine.folder / "bom.cdx.json").unlink()
    (mine.folder / "notes.txt").write_text("x")
    assert failed(mine)[:2] == ["bom.cdx.json", "notes.txt"]


def test_a_truncated_statement(mine: Released) -> None:
    """Both the file and the statement in it are told."""
    path = mine.folder / PROVENANCE
    path.write_bytes(path.read_bytes()[:-300])
    assert f"{PROVENANCE}: statement" in failed(mine)


def test_another_input_has_no_signature(released: Released) -> None:
    record = read_release(released.folder)
    signer = replay_signer(released.folder, record, released.signer.public_key)
    assert isinstance(signer, ReplaySigner) and len(signer.signatures) >= 4
    assert isinstance(signer.sign_digest(bytes(32)), BlankSignature)
    assert signer.missing == ["00" * 32]
    assert signer.name == "owner" and not signer.development


def test_another_input_gives_another_build_that_can_be_compared(mine: Released, tmp_path: Path) -> None:
    """Not a build that ends at the first signature: what is the same is told as the same, and the rest is there."""
    archive = mine.folder / ARCHIVE
    board, system = unpack_archive(archive, tmp_path / "changed")
    (system.parent / "extra/etc").mkdir(parents=True)
    (system.parent / "extra/etc/more").write_text("more\n")
    system.write_text(system.read_text() + "overlay: [{from: extra}]\n")
    archive.unlink()
    write_archive(gather(board, None, system), archive)
    done = CliRunner().invoke(rebuild_command, [str(mine.folder), "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, ReproducibilityError), done.exception
    assert f"diff {mine.folder} {tmp_path}/out/made" in str(done.exception.hint)
    made = tmp_path / "out/made"
    verdicts = {one.name: one.same for one in compare(mine.folder, read_release(mine.folder), made)}
    assert (verdicts["slots.bin"], verdicts["sign.crt"], verdicts["u-boot.bin"]) == (True, True, True)
    assert (verdicts["system.img"], verdicts["boot.fit"], verdicts["release.json.p7s"]) == (False, False, False)
    assert read_release(made)["files"].keys() == read_release(mine.folder)["files"].keys()
    refused = [check.what for check in verify_path(made, mine.signer).failed]
    assert refused[0] == "release.json" and "system.root-hash.p7s" in refused, "a blank signature is none"


def test_a_record_without_its_signature_is_told_before_anything_is_built(mine: Released, tmp_path: Path) -> None:
    (mine.folder / "release.json.p7s").unlink()
    with pytest.raises(VerificationError, match="not signed"):
        rebuild(mine.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_archive_of_inputs(product: Path, tmp_path: Path) -> None:
    inputs = gather(product / "boards/qemu-aarch64.yaml")
    for name in ("one", "two"):
        write_archive(inputs, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    board, system = unpack_archive(tmp_path / "one", tmp_path / "out")
    again = gather(board, None, system)
    for path in (tmp_path / "out").rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    write_archive(again, tmp_path / "narrow")
    assert (tmp_path / "narrow").read_bytes() == (tmp_path / "one").read_bytes(), "whatever the umask was"
    assert (again.board.digest, again.system.loaded.digest) == (inputs.board.digest, inputs.system.loaded.digest)
    assert len(input_files(again)) == len(input_files(inputs))
    with tarfile.open(tmp_path / "one") as tar:
        assert all(m.mtime == 0 and m.uid == m.gid == 0 and not m.uname for m in tar)
        assert str(product.parent).lstrip("/") not in "".join(m.name for m in tar)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b"])
def test_hostile_archives(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "t", "w") as tar:
        info = tarfile.TarInfo(name)
        tar.addfile(info)
    with pytest.raises(FormatError, match="not an archive of inputs"):
        unpack_archive(tmp_path / "t", tmp_path / "out")
    with tarfile.open(tmp_path / "t", "w") as tar:
        data = json.dumps({"board": name, "system": "x"}).encode()
        info = tarfile.TarInfo("inputs.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(FormatError, match="leads out"):
        unpack_archive(tmp_path / "t", tmp_path / "out2")


def test_symlinks_are_kept_and_never_written_through(tmp_path: Path) -> None:
    """Those of an overlay lead to where the board has something; the archive's files do not follow them."""
    (tmp_path / "outside").mkdir()
    links = {
        "overlay/etc/localtime": "/usr/share/zoneinfo/UTC",
        "overlay/up": "../../..",
        "out": str(tmp_path / "outside"),
    }

    def archive(more: str) -> Path:
        with tarfile.open(tmp_path / "t", "w") as tar:
            for name, target in links.items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
            for name, data in (("inputs.json", json.dumps({"board": "b", "system": "s"}).encode()), (more, b"x")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return tmp_path / "t"

    unpack_archive(archive("overlay/file"), tmp_path / "good")
    assert {name: os.readlink(tmp_path / "good" / name) for name in links} == links
    for number, name in enumerate(("out/file", "overlay/up/file", "out")):
        with pytest.raises(FormatError, match=r"leads out|exists"):
            unpack_archive(archive(name), tmp_path / f"bad{number}")
    assert not any((tmp_path / "outside").iterdir())
    assert not (tmp_path / "file").exists()


def test_dirty_inputs_and_development_keys(product: Path, tmp_path: Path) -> None:
    copy = tmp_path / "product"
    shutil.copytree(product, copy)
    git = ["git", "-C", str(copy), "-c", "user.name=x", "-c", "user.email=x@y"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    board = copy / "boards/qemu-aarch64.yaml"
    paths = input_files(gather(board))
    refuse_dirty(paths)
    with pytest.raises(ErofsEdgeError, match="development key"):
        make_release(board, BuildOptions(out=tmp_path / "out"))
    board.write_text(board.read_text() + "\n")
    with pytest.raises(ErofsEdgeError, match=r"differ from what is committed: boards/qemu-aarch64\.yaml"):
        make_release(board, BuildOptions(out=tmp_path / "out"))
    assert not (tmp_path / "out/release.json").exists()


def test_packages_from_a_folder(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(SourceError, match=r"no \.deb files"):
        add_packages(tmp_path, cache)
    (tmp_path / "x.deb").write_bytes(b"deb")
    add_packages(tmp_path, cache)
    assert [path.read_bytes() for path in (tmp_path / "cache/blobs").rglob("*") if path.is_file()] == [b"deb"]


def test_a_build_is_no_release(mine: Released, tmp_path: Path) -> None:
    (mine.folder / ARCHIVE).unlink()
    with pytest.raises(ErofsEdgeError, match="a build, not a release"):
        rebuild(mine.folder, tmp_path / "out")


def test_the_command_says_what_differs(released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that gives another disk: the verdict names it, nothing is attested."""
    other = tmp_path / "made"
    shutil.copytree(released.folder, other, ignore=shutil.ignore_patterns("disk.img"))
    write_json(other / "contents.json", {})
    record = read_release(released.folder)
    result = Rebuilt(tmp_path, compare(released.folder, record, other))
    monkeypatch.setattr("erofs_edge.release.rebuild.rebuild", lambda *args, **kwargs: result)
    done = CliRunner().invoke(rebuild_command, [str(released.folder), "--json"])
    assert isinstance(done.exception, ReproducibilityError) and done.exception.exit_code == 5
    assert "contents.json, disk.img" in str(done.exception)
    assert json.loads(done.stdout)["identical"] is False
    with pytest.raises(ErofsEdgeError, match="nothing to attest"):
        attestation(result, record)
    assert outputs(released.folder, ["sign.crt"])["sign.crt"] == record["files"]["sign.crt"]


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(3500)
def test_the_gate_in_real_machines(stock_release: Released, tmp_path: Path) -> None:
    """All promises of a release of the stock board; its update is from itself."""
    shutil.copytree(stock_release.folder, tmp_path / "old", ignore=shutil.ignore_patterns("disk.img"))
    rows = check_release(stock_release.folder, stock_release.signer, Wanted((tmp_path / "old",), 0, timeout=1500))
    assert [f"{row.name}: {row.detail}" for row in rows if not row.kept] == []
    assert [row.name for row in rows] == list(PROMISES)
