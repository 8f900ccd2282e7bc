# SPDX-License-Identifier: Apache-2.0
"""The stock manifest's own files: the report script, and units that say what they mean."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from erofs_edge.manifest.load import load_system
from erofs_edge.sources.debian.configure.units import parse_install

MOUNTS = """\
/dev/mapper/root / erofs ro,relatime 0 0
/dev/vda6 /data ext4 rw,noatime 0 0
/dev/vda6 /var ext4 rw,noatime 0 0
overlay /etc overlay rw 0 0
"""
TABLE = "0 109768 verity 1 254:4 254:4 4096 4096 13721 13722 sha256 8ce6f1 d6c929"


@pytest.fixture
def overlay(repository: Path) -> Path:
    return repository / "manifests/files/edge-minimal"


def report(overlay: Path, tmp_path: Path, *, status: str = "0 109768 verity V", table: str = TABLE, var: str = "var",
           cmdline: str = "console=ttyAMA0 erofs_edge.slot=b quiet\n", log: str = "") -> str:  # fmt: skip
    """What the script prints with these answers of the kernel."""
    (tmp_path / "var").mkdir(exist_ok=True)
    for name, text in (("mounts", MOUNTS), ("cmdline", cmdline), ("console", ""), ("kmsg", log)):
        (tmp_path / name).write_text(text)
    tool = tmp_path / "dmsetup"
    tool.write_text(
        f"#!/bin/sh\n[ \"$2\" = root ] || exit 1\ncase $1 in table) echo '{table}' ;; status) echo '{status}' ;; esac\n"
    )
    tool.chmod(0o755)
    script = (overlay / "usr/lib/erofs-edge/report").read_text()
    for old, new in (
        ("/proc/", f"{tmp_path}/"),
        ("/var/.", f"{tmp_path}/{var}/."),
        ("/dev/console", f"{tmp_path}/console"),
        ("/dev/kmsg", f"{tmp_path}/kmsg"),
    ):
        assert old in script
        script = script.replace(old, new)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-eu", "-c", script], env=environment, check=True, capture_output=True)
    return (tmp_path / "console").read_text()


def test_a_good_system(overlay: Path, tmp_path: Path) -> None:
    assert report(overlay, tmp_path) == (
        "\nerofs-edge: report root=erofs dm=verity status=V roothash=8ce6f1 slot=b"
        " var=ext4:rw data=/dev/vda6 fec=none\n"
    )
    assert list((tmp_path / "var").iterdir()) == []


def test_what_the_kernel_has_corrected_is_counted(overlay: Path, tmp_path: Path) -> None:
    """By the lines of its log; other lines of the same driver do not count."""
    table = f"{TABLE} 4 use_fec_from_device 254:5 fec_roots 2"
    line = "4,{},{},-;device-mapper: verity-fec: 254:5: FEC {}: {}\n"
    log = "".join(
        line.format(400 + number, 1000 * number, 40960 * number, said)
        for number, said in enumerate(["corrected 24 errors", "failed to correct: -74", "corrected 1 errors"])
    )
    assert report(overlay, tmp_path, table=table, log=f"6,1,0,-;Booting * now\n{log}6,9,0,-;corrected\n").endswith(
        " fec=2\n"
    )
    assert report(overlay, tmp_path, table=table, log="6,1,0,-;Booting\n").endswith(" fec=0\n")
    assert report(overlay, tmp_path, log=log).endswith(" fec=none\n")


def test_what_is_wrong_or_missing_shows(overlay: Path, tmp_path: Path) -> None:
    assert " status=C " in report(overlay, tmp_path, status="0 109768 verity C")
    bare = report(overlay, tmp_path, status="", table="", var="none", cmdline="quiet\n")
    assert bare == (
        "\nerofs-edge: report root=erofs dm=none status=none roothash=none slot=none"
        " var=ext4:ro data=/dev/vda6 fec=none\n"
    )


def test_enabled_units_of_the_overlay_say_where_they_belong(overlay: Path, repository: Path) -> None:
    system = load_system(repository / "manifests/edge-base.yaml").value
    for path in sorted(overlay.rglob("*.service")):
        install = parse_install(path.read_text())
        if path.name in system.units.enable:
            assert install.wanted_by, path
    assert "edge-report.service" in system.units.enable
    assert not set(system.units.mask) & set(system.units.enable)
