# SPDX-License-Identifier: Apache-2.0
"""Extensions, portable services and apps as images, checked by systemd-dissect."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.build.extension import build_extension
from erofs_edge.build.pipeline import BuildOptions, BuildResult
from erofs_edge.disk import gpt
from erofs_edge.erofs.read import Image
from erofs_edge.errors import CapacityError, ManifestError
from erofs_edge.manifest.load import load_system, lock_path, save_lock
from erofs_edge.manifest.model import Lock, LockedPackage
from erofs_edge.trust.signer import open_signer
from erofs_edge.verify.path import verify_path

Build = Callable[..., BuildResult]
UNIT = "[Service]\nExecStart=/usr/bin/hello\n[Install]\nWantedBy=multi-user.target\n"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))
    for name, text in (("usr/bin/hello", "#!"), ("usr/lib/systemd/system/hello.service", UNIT), ("etc/hello", "x")):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(text: str, name: str = "hello") -> BuildResult:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"system: {name}\n{text}")
        system = load_system(path).value
        asked = {"system": sorted(system.packages)}
        lock = Lock(name=name, suite="trixie", arch="arm64", date=86400, requested=asked, packages={"system": []})
        save_lock(lock, lock_path(path))
        return build_extension(path, BuildOptions(tmp_path / "out", cache=tmp_path / "cache"))

    return build


def dissect(oracle: Callable[[str], str], *arguments: str) -> str:
    """Return systemd-dissect's output; it must accept the image."""
    done = subprocess.run([oracle("systemd-dissect"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


OVER = "overlay: [{from: files, executable: [/usr/bin/*]}]\n"
RELEASE = "entries: [{path: /usr/lib/os-release, text: 'ID=debian'}]\n"


@pytest.mark.parametrize(
    ("kind", "more", "use"),
    [
        ("sysext", "units: {enable: [hello.service]}\n", "sysext for system"),
        ("confext", "", "confext for system"),
        ("portable", RELEASE, "portable service"),
        ("app", RELEASE, ""),
    ],
)
def test_systemd_takes_each_kind(
    build: Build, oracle: Callable[[str], str], tmp_path: Path, kind: str, more: str, use: str
) -> None:
    result = build(f"kind: {kind}\n{OVER}{more}")
    image = tmp_path / "out/hello.raw"
    assert dissect(oracle, "--validate", str(image)).strip() == "OK"
    said = dissect(oracle, "--no-pager", str(image))
    assert not use or f"✓ {use}" in said
    assert "signed" in said and "root-verity-sig" in said
    assert result.record["kind"] == kind and result.record["files"]["hello.raw"]["size"] == image.stat().st_size


def test_verify_of_the_folder_checks_the_image_in_it(build: Build, tmp_path: Path) -> None:
    build(f"kind: sysext\n{OVER}")
    key = open_signer("dev:dev")
    verdict = verify_path(tmp_path / "out", key)
    assert verdict.ok, verdict.failed
    assert "hello: file system" in [check.what for check in verdict.checks]
    image = tmp_path / "out/hello.raw"
    raw = bytearray(image.read_bytes())
    raw[(1 << 20) + 1100] ^= 1  # in the superblock of the first partition
    image.write_bytes(raw)
    assert not verify_path(tmp_path / "out", key).ok


def tree_of(image: Path, tmp_path: Path) -> dict[str, str]:
    """Return path → content or target of everything but directories, from the image's first partition."""
    raw = image.read_bytes()
    table = gpt.decode(lambda at, length: raw[at : at + length], len(raw), 512)
    first = table.partitions[0]
    data = tmp_path / "data.erofs"
    data.write_bytes(raw[first.first_lba * 512 : (first.last_lba + 1) * 512])
    with Image(data) as opened:
        return {
            path.decode(): inode.target.decode() if inode.is_symlink else inode.read().decode()
            for path, inode in opened.tree().walk()
            if not inode.is_dir
        }


def test_an_extension_holds_its_hierarchies_and_says_what_it_does_not(build: Build, tmp_path: Path) -> None:
    result = build(f"kind: sysext\n{OVER}units: {{enable: [hello.service]}}\n")
    found = tree_of(tmp_path / "out/hello.raw", tmp_path)
    assert found == {
        "/usr/bin/hello": "#!",
        "/usr/lib/extension-release.d/extension-release.hello": "ID=_any\nEXTENSION_RELOAD_MANAGER=1\n",
        "/usr/lib/systemd/system/hello.service": UNIT,
        "/usr/lib/systemd/system/multi-user.target.wants/hello.service": "/usr/lib/systemd/system/hello.service",
    }
    assert result.notes == ["a sysext holds only /usr and /opt: left out are /etc/hello"]


def test_the_same_inputs_give_the_same_bytes_and_unchanged_ones_no_work(build: Build, tmp_path: Path) -> None:
    text = f"kind: confext\n{OVER}"
    assert build(text).fresh
    first = (tmp_path / "out/hello.raw").read_bytes()
    assert not build(text).fresh
    (tmp_path / "out/hello.raw").unlink()
    assert build(text).fresh and (tmp_path / "out/hello.raw").read_bytes() == first
    (tmp_path / "files/etc/hello").write_text("y")
    assert build(text).fresh and (tmp_path / "out/hello.raw").read_bytes() != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{OVER}", "a system is built as part of a board"),
        ("kind: sysext\nentries: [{path: /etc/x, text: y}]\n", "a sysext with nothing below /usr and /opt"),
        (f"kind: portable\n{OVER}", "needs /usr/lib/os-release"),
        (f"kind: sysext\n{OVER}units: {{enable: [no.service]}}\n", "no unit 'no.service' in the extension"),
    ],
)
def test_what_no_image_can_be_made_of(build: Build, text: str, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        build(text)


def test_a_portable_service_is_called_like_its_units(build: Build) -> None:
    with pytest.raises(ManifestError, match="has a name that starts with other"):
        build(f"kind: portable\n{OVER}{RELEASE}", name="other")


def test_an_extension_has_a_budget(build: Build) -> None:
    with pytest.raises(CapacityError, match=r"the image is 2.0 MiB"):
        build(f"kind: confext\n{OVER}size_budget: {{partition: 1M}}\n")


def test_the_packages_of_the_host_stay_out(build: Build, tmp_path: Path) -> None:
    from erofs_edge.build.extension import gather_extension

    (tmp_path / "base.yaml").write_text("system: base\npackages: [libc6]\n")
    libc = LockedPackage(
        name="libc6", version="2.41-12", arch="arm64", archive="debian", path="pool/x.deb", size=1, sha256="0" * 64
    )
    save_lock(
        Lock(name="base", suite="trixie", arch="arm64", date=1, requested={"system": ["libc6"]},
             packages={"system": [libc]}),
        tmp_path / "base.lock",
    )  # fmt: skip
    build(f"kind: sysext\nhost: base.yaml\n{OVER}")
    assert gather_extension(tmp_path / "hello.yaml").host_packages == ["libc6"]
