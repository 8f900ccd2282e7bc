# SPDX-License-Identifier: Apache-2.0
"""Wheel and source archive: the same bytes from another folder, umask and time; and the installed wheel works."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from erofs_edge import __version__

pytestmark = pytest.mark.xdist_group("packaging")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md")
FOLDERS = ("erofs_edge", "boards", "manifests", "tools/packaging", "docs/man")
NAME = f"erofs_edge-{__version__}"
BUILD = """\
import sys
folder = sys.argv[1]
sys.path.insert(0, "tools/packaging")
import reproducible_build
print(reproducible_build.build_sdist(folder))
print(reproducible_build.build_wheel(folder))
"""


def copy_sources(repository: Path, target: Path) -> Path:
    for name in FOLDERS:
        shutil.copytree(repository / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy2(repository / name, target / name)
    return target


def build(source: Path, out: Path, **environment: str) -> dict[str, bytes]:
    """Both archives of a source folder, by name."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=source, env=os.environ | environment, capture_output=True,
        text=True, check=False, umask=0o077 if environment else 0o022,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    top = tmp_path_factory.mktemp("packaging")
    return build(copy_sources(repository, top / "source"), top / "dist")


def test_the_same_bytes_elsewhere(built: dict[str, bytes], repository: Path, tmp_path: Path) -> None:
    """Unpacked from the source archive, in another folder, with another umask, later, with other modes."""
    assert set(built) == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    with tarfile.open(fileobj=io.BytesIO(built[f"{NAME}.tar.gz"])) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python has none
        archive.extractall(tmp_path / "deeper/folder")
    source = tmp_path / "deeper/folder" / NAME
    for path in source.rglob("*"):
        path.chmod(0o600 | path.stat().st_mode & 0o100)
        os.utime(path, (1_900_000_000, 1_900_000_000))
    again = build(source, tmp_path / "dist", TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7")
    for name, data in built.items():
        assert again[name] == data, f"{name} differs"


def test_an_editable_install_loads_nothing_when_python_starts(repository: Path, tmp_path: Path) -> None:
    source, out = copy_sources(repository, tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    call = "import reproducible_build; print(reproducible_build.build_editable(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tools/packaging'); {call}", str(out)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if "/" not in one]
        assert name.endswith(".pth") and archive.read(name).decode().split("\n")[0] == str(source)


def test_what_the_archives_say_of_their_maker(built: dict[str, bytes], repository: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(built[f"{NAME}.tar.gz"])) as archive:
        members = archive.getmembers()
    assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in members} == {(0, 0, "", "", 315_532_800)}
    assert {stat.S_IMODE(one.mode) for one in members} <= {0o644, 0o755}
    names = {one.name.removeprefix(f"{NAME}/") for one in members}
    assert {"tools/packaging/reproducible_build.py", "docs/man/erofs-edge.1", "boards/rpi4.yaml", "LICENSE"} <= names
    with zipfile.ZipFile(io.BytesIO(built[f"{NAME}-py3-none-any.whl"])) as wheel:
        assert wheel.testzip() is None
        entries = wheel.infolist()
        metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode()
    assert {one.date_time for one in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {one.external_attr >> 16 for one in entries} <= {0o100644, 0o100755}
    assert str(repository).encode() not in b"".join(built.values()), "no folder of the machine that builds"
    assert "License-File: LICENSE" in metadata


def test_every_file_of_the_package_is_in_the_wheel(built: dict[str, bytes], repository: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(built[f"{NAME}-py3-none-any.whl"])) as wheel:
        names = set(wheel.namelist())
    for path in (repository / "erofs_edge").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"erofs_edge/{path.relative_to(repository / 'erofs_edge').as_posix()}" in names
    for folder in ("boards", "manifests"):
        for path in (repository / folder).rglob("*"):
            if path.is_file():
                assert f"erofs_edge/stock/{path.relative_to(repository).as_posix()}" in names


def test_an_installed_wheel_has_it_all(built: dict[str, bytes], tmp_path: Path) -> None:
    wheel = tmp_path / f"{NAME}-py3-none-any.whl"
    wheel.write_bytes(built[wheel.name])
    # an environment with our dependencies and nothing of this checkout
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = next((venv / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", str(venv / "bin/python")]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    edge = str(venv / "bin/erofs-edge")

    def ask(*args: str, cwd: Path = tmp_path) -> str:
        done = subprocess.run([edge, *args], cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert ask("--version") == f"erofs-edge, version {__version__}\n"
    assert "my-gateway/boards/my-gateway.yaml" in ask("new", "my-gateway", "--board", "qemu-aarch64")
    record = json.loads(ask("explain", "my-gateway", "--json", cwd=tmp_path / "my-gateway"))
    assert record["files"][1] == str(packages / "erofs_edge/stock/boards/qemu-aarch64.yaml")
    code = "import sys; from erofs_edge.build.inputs import gather\n"
    code += "print(gather(sys.argv[1]).system.loaded.value.overlay[0].from_)"
    done = subprocess.run(
        [str(venv / "bin/python"), "-c", code, "my-gateway"],
        cwd=tmp_path / "my-gateway", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(str(packages / "erofs_edge/stock/manifests/files")), done.stderr
    assert "kind" in ask("explain", "edge-base", "--json")
    assert (venv / "share/man/man1/erofs-edge.1").read_text().startswith('.\\"')


def test_the_backend_is_pinned(repository: Path) -> None:
    system = tomllib.loads((repository / "pyproject.toml").read_text())["build-system"]
    assert [re.fullmatch(r"[\w-]+==[\d.]+", one) is not None for one in system["requires"]] == [True]
