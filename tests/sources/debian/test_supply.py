# SPDX-License-Identifier: Apache-2.0
"""Packages from somebody else's signed archives and from files, through the real apt: locked, fetched, unpacked."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sources.samples import control_text, deb_bytes, entry

from erofs_edge.errors import ManifestError, MirrorError, VerificationError
from erofs_edge.manifest.load import Loaded, load_lock, load_system, save_lock
from erofs_edge.manifest.model import Lock, System
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure.accounts import Ids
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.lock import check_lock, lock_system
from erofs_edge.sources.debian.mirror import Mirror
from erofs_edge.sources.debian.supply import fetch_locked
from erofs_edge.sources.debian.unpack import unpack

DATA = Path(__file__).parent / "data"
MANIFEST = """\
system: m
packages: [{packages}]
archives:
  vendor:
    uri: file:{folder}/vendor
    suite: stable
    components: [main, extra]
    key: vendor.asc
"""


class Keys:
    """Keys and signatures of sqop, which needs no agent and no folder."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def make(self, name: str) -> bytes:
        key = self._run("generate-key", name)
        (self._folder / f"{name}.secret").write_bytes(key)
        return self._run("extract-cert", stdin=key)

    def dearmor(self, data: bytes) -> bytes:
        return self._run("dearmor", stdin=data)

    def sign(self, name: str, data: bytes) -> bytes:
        return self._run("inline-sign", "--as=clearsigned", str(self._folder / f"{name}.secret"), stdin=data)

    def _run(self, *args: str, stdin: bytes = b"") -> bytes:
        return subprocess.run([self._program, *args], input=stdin, check=True, capture_output=True).stdout


def stanza(name: str, version: str, path: str, data: bytes, arch: str = "arm64", **fields: str) -> str:
    text = control_text(name, version, **fields).replace("Architecture: arm64", f"Architecture: {arch}")
    sha256 = hashlib.sha256(data).hexdigest()
    return f"{text.split('Description')[0]}Filename: {path}\nSize: {len(data)}\nSHA256: {sha256}\nDescription: x\n\n"


def deb(name: str, version: str = "1.0", text: bytes = b"vendor", **fields: str) -> bytes:
    return deb_bytes([entry(f"usr/share/{name}", text)], control=control_text(name, version, **fields))


class Archive:
    """A package archive of somebody else's; `flat` has no suites."""

    def __init__(self, folder: Path, keys: Keys, *, flat: bool = False) -> None:
        self.folder, self._keys, self._flat = folder, keys, flat
        self._indexes: dict[str, str] = {}

    def add(self, component: str, name: str, version: str = "1.0", arch: str = "arm64", **fields: str) -> bytes:
        data = deb(name, version, **fields)
        path = f"{name}.deb" if self._flat else f"pool/{component}/{name}_{version}.deb"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)
        index = "Packages" if self._flat else f"{component}/binary-{arch}/Packages"
        self._indexes[index] = self._indexes.get(index, "") + stanza(name, version, path, data, arch, **fields)
        return data

    def publish(self, key: str, suite: str = "stable") -> None:
        top = self.folder if self._flat else self.folder / "dists" / suite
        names = list(self._indexes)
        if not self._flat:
            names += [f"{c}/binary-{a}/Packages" for c in ("main", "extra") for a in ("arm64", "amd64")]
        lines = []
        for name in dict.fromkeys(names):
            data = self._indexes.get(name, "").encode()
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(data)
            lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n")
        head = "Origin: Vendor\nDate: Sat, 10 Jan 2026 10:00:00 UTC\n"
        if not self._flat:
            head += f"Suite: {suite}\nCodename: {suite}\nArchitectures: arm64 amd64\nComponents: main extra\n"
        (top / "InRelease").write_bytes(self._keys.sign(key, (head + "SHA256:\n" + "".join(lines)).encode()))


@pytest.fixture
def keys(tmp_path: Path, oracle: Callable[[str], str]) -> Keys:
    made = Keys(oracle("sqop"), tmp_path)
    (tmp_path / "vendor.asc").write_bytes(made.make("vendor"))
    return made


@pytest.fixture
def mirror() -> Mirror:
    """The archive that data/make-archive made and signed."""
    return Mirror({"debian": f"file:{DATA}/archive"}, DATA / "archive.gpg")


def loaded(tmp_path: Path, text: str) -> Loaded[System]:
    (tmp_path / "m.yaml").write_text(text)
    return load_system(tmp_path / "m.yaml")


def locked(one: Loaded[System], mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """The lock without ids, which need Debian's base packages; written and read again."""
    monkeypatch.setattr("erofs_edge.sources.debian.lock._ids", lambda *_: Ids({}, {}))
    path = one.path.with_suffix(".lock")
    save_lock(lock_system(one, mirror=mirror, cache=cache), path)
    lock = load_lock(path)
    check_lock(lock, one)
    return lock


def test_an_archive_of_somebody_else(
    tmp_path: Path, keys: Keys, mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path / "vendor", keys)
    archive.add("main", "agent", Depends="agent-data (>= 1.0)")
    archive.add("extra", "agent-data")
    archive.publish("vendor")
    one = loaded(tmp_path, MANIFEST.format(packages="agent", folder=tmp_path))
    lock = locked(one, mirror, cache, monkeypatch)
    assert [(p.name, p.archive, p.path) for p in lock.packages["system"]] == [
        ("agent", "vendor", "pool/main/agent_1.0.deb"),
        ("agent-data", "vendor", "pool/extra/agent-data_1.0.deb"),
    ]
    assert lock.requested["archives"] == [f"vendor: file:{tmp_path}/vendor stable main extra"]
    assert lock.date == 1768039200, "the newest release file's"
    debs = fetch_locked(lock.packages["system"], one, mirror, Cache(tmp_path / "other"))
    tree = unpack(read_debs(debs, cache))
    assert tree.get("usr/share/agent").read() == tree.get("usr/share/agent-data").read() == b"vendor"
    # the lock belongs to these archives
    with pytest.raises(ManifestError, match="the lock was made for other packages"):
        check_lock(lock, loaded(tmp_path, MANIFEST.format(packages="agent", folder=tmp_path / "moved")))


def test_an_archive_without_suites_and_a_key_without_armor(
    tmp_path: Path, keys: Keys, mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flat.key").write_bytes(keys.dearmor(keys.make("flat")))
    archive = Archive(tmp_path / "flat", keys, flat=True)
    archive.add("", "agent")
    archive.publish("flat")
    text = f"archives: {{flat: {{uri: 'file:{tmp_path}/flat', suite: ./, key: flat.key}}}}\n"
    one = loaded(tmp_path, "system: m\npackages: [agent]\n" + text)
    (package,) = locked(one, mirror, cache, monkeypatch).packages["system"]
    assert (package.archive, package.path) == ("flat", "agent.deb")
    assert fetch_locked([package], one, mirror, cache)["agent"].read_bytes() == deb("agent")


def test_an_archive_that_another_key_signed(
    tmp_path: Path, keys: Keys, mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.make("stranger")
    archive = Archive(tmp_path / "vendor", keys)
    archive.add("main", "agent")
    archive.publish("stranger")
    one = loaded(tmp_path, MANIFEST.format(packages="agent", folder=tmp_path))
    with pytest.raises(MirrorError, match="cannot be fetched or verified"):
        locked(one, mirror, cache, monkeypatch)


def test_package_files_win_and_bring_what_they_need(
    tmp_path: Path, mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the archive has lib 3 of another content: the file counts, by name and version
    (tmp_path / "mine_2.0_arm64.deb").write_bytes(deb("mine", "2.0", b"mine", Depends="lib (>= 3)"))
    (tmp_path / "lib.deb").write_bytes(deb("lib", "3", b"own"))
    one = loaded(tmp_path, "system: m\ndebs: [mine_2.0_arm64.deb, lib.deb]\n")
    lock = locked(one, mirror, cache, monkeypatch)
    assert [(p.name, p.version, p.archive, p.path) for p in lock.packages["system"]] == [
        ("lib", "3", "local", "lib.deb"),
        ("mine", "2.0", "local", "mine_2.0_arm64.deb"),
    ]
    assert lock.requested["debs"] == ["lib.deb", "mine_2.0_arm64.deb"]
    debs = fetch_locked(lock.packages["system"], one, mirror, cache)
    assert unpack(read_debs(debs, cache)).get("usr/share/lib").read() == b"own"
    (tmp_path / "lib.deb").write_bytes(deb("lib", "3", b"changed"))
    with pytest.raises(VerificationError, match=r"lib\.deb is not what the lock pins") as caught:
        fetch_locked(lock.packages["system"], one, mirror, Cache(cache.root))
    assert caught.value.where == f"{tmp_path}/m.yaml:2:28"
    (tmp_path / "lib.deb").unlink()
    with pytest.raises(ManifestError, match=r"m\.yaml:2:28: no such file: .*lib\.deb"):
        loaded(tmp_path, "system: m\ndebs: [mine_2.0_arm64.deb, lib.deb]\n")
    with pytest.raises(ManifestError, match=r"the lock pins lib\.deb, which is not among them"):
        fetch_locked(
            lock.packages["system"], loaded(tmp_path, "system: m\ndebs: [mine_2.0_arm64.deb]\n"), mirror, cache
        )


def test_a_package_file_may_need_the_archive(
    tmp_path: Path, mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.deb").write_bytes(deb("mine", "2.0", Depends="base"))
    monkeypatch.setattr(
        "erofs_edge.sources.debian.supply.fetch", lambda packages, *_: dict.fromkeys(p.name for p in packages)
    )
    lock = locked(loaded(tmp_path, "system: m\ndebs: [mine.deb]\n"), mirror, cache, monkeypatch)
    assert [(p.name, p.archive) for p in lock.packages["system"]] == [("base", "debian"), ("mine", "local")]


def test_a_package_file_for_another_architecture_is_named(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = "Package: mine\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n"
    (tmp_path / "mine.deb").write_bytes(deb_bytes(control=control))
    with pytest.raises(ManifestError, match=r"mine\.deb is for amd64, the system for arm64") as caught:
        locked(loaded(tmp_path, "system: m\ndebs: [mine.deb]\n"), Mirror({}, tmp_path), cache, monkeypatch)
    assert "m.yaml:2:8" in str(caught.value.where)


def test_why_packages_do_not_go_together(
    tmp_path: Path, keys: Keys, mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path / "vendor", keys)
    archive.add("main", "one", Conflicts="two")
    archive.add("main", "two")
    archive.add("main", "newer", Depends="lib (>= 4)")
    archive.add("main", "foreign", arch="amd64")
    archive.publish("vendor")

    def failure(packages: str) -> ManifestError:
        with pytest.raises(ManifestError) as caught:
            locked(loaded(tmp_path, MANIFEST.format(packages=packages, folder=tmp_path)), mirror, cache, monkeypatch)
        assert len(caught.value.message) < 700
        return caught.value

    conflict = failure("one, two")
    assert "one" in conflict.message and "two" in conflict.message and "onflicts" in conflict.message
    assert conflict.where == f"{tmp_path}/m.yaml:2:12"
    assert "lib (>= 4)" in failure("newer").message
    assert failure("lib, nonesuch").message == "no such package: nonesuch (for arm64 in trixie)"
    foreign = failure("lib, foreign")
    assert foreign.message == "no package for arm64 in trixie: foreign (there is one for amd64)"
    assert foreign.where == f"{tmp_path}/m.yaml:2:17"


def test_components_and_architecture(tmp_path: Path, keys: Keys, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite itself may be anything: here the vendor's archive is the mirror."""
    archive = Archive(tmp_path / "vendor", keys)
    archive.add("extra", "agent", arch="amd64")
    archive.add("main", "other", arch="amd64")
    archive.publish("vendor", "sid")
    mirror = Mirror({"debian": f"file:{tmp_path}/vendor"}, tmp_path / "vendor.asc")
    text = "system: m\nsuite: sid\narch: amd64\ncomponents: [main, extra]\npackages: [agent]\n"
    lock = locked(loaded(tmp_path, text), mirror, cache, monkeypatch)
    assert (lock.suite, lock.arch, lock.requested["components"]) == ("sid", "amd64", ["extra", "main"])
    assert [(p.name, p.arch) for p in lock.packages["system"]] == [("agent", "amd64")]
    text = text.replace("components: [main, extra]\n", "components: [main]\n")
    with pytest.raises(ManifestError, match=r"no such package: agent \(for amd64 in sid\)"):
        locked(loaded(tmp_path, text), mirror, cache, monkeypatch)


def test_a_system_without_packages_needs_no_apt(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erofs_edge.sources.debian.apt.open_apt", lambda *_, **__: pytest.fail("apt is asked"))
    (tmp_path / "files").mkdir()
    lock = lock_system(
        loaded(tmp_path, "system: m\nsources: [{directory: files}]\n"), mirror=Mirror({}, Path()), cache=cache
    )
    assert (lock.packages, lock.date) == ({"system": []}, 0)
    assert [(pin.kind, pin.name) for pin in lock.sources] == [("directory", "files")]
    assert msgspec.json.decode(msgspec.json.encode(lock), type=Lock) == lock


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("archives: {local: {suite: x, components: [main]}}", "2:12", '"local" is not free'),
        ("archives: {a: {uri: 'https://a.test', suite: x, components: [main]}}", "2:12", 'needs the "key"'),
        ("archives: {a: {uri: 'ftp://a.test', suite: ./}}", "2:21", "must be the URI of a package archive"),
        ("archives: {a: {suite: x}}", "2:12", 'a suite needs "components"'),
        ("archives: {a: {suite: ./, components: [main]}}", "2:27", "has no components"),
        ("archives: {a: {suite: ./, key: none.asc}}", "2:27", "no such file"),
        ("debs: [m.yaml]", "2:8", "not a package file by its name"),
        ("debs: [a.deb, a.deb]", "2:15", "a second package file of the name"),
        ("arch: m68k", "2:7", "must be one of amd64"),
    ],
)
def test_what_a_manifest_says_wrongly(tmp_path: Path, text: str, where: str, message: str) -> None:
    (tmp_path / "a.deb").write_bytes(b"")
    with pytest.raises(ManifestError, match=message) as caught:
        loaded(tmp_path, f"system: m\n{text}\n")
    assert (caught.value.where or "").endswith(f"m.yaml:{where}")
