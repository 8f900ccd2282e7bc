# SPDX-License-Identifier: Apache-2.0
"""Systems that are not stock, built with `--system` and booted: on an image of ours, from a container image, with
another manager of the network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sources.oci.images import files, image, write_layout

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(2400)]
Boot = Callable[[str, str], str]

ON_BASE = """\
system: on-base
base: base
sources: [{oci: {layout: app.oci}, to: /opt/app}]
overlay: [{from: files}]
modules: [loop]
smoke:
  seconds: 1200
  units: [ssh.service]
  commands:
    base: grep -qx 'PRETTY_NAME="Debian.*' /etc/os-release && id sshd
    layers: test "$(cat /opt/app/lower)" = changed && ! test -e /opt/app/gone
    overlay: test "$(cat /etc/product)" = one
    modules: modprobe loop && test -e /dev/loop-control
"""
NETWORK_MANAGER = """\
system: nm
extends: edge-base
packages+: [network-manager]
harmless_scripts: [libnewt0.52, libreadline8t64, network-manager, readline-common]
network: {manager: NetworkManager, links: {lan: {match: [en*, eth*]}}}
units: {enable: [edge-mark-good.service, edge-report.service]}
smoke:
  seconds: 1200
  units: [ssh.service, NetworkManager.service]
  commands:
    profile: nmcli -t -f NAME connection show | grep -x lan
    alone: "! systemctl is-active systemd-networkd.service"
"""


@pytest.fixture
def boot(edge: str, tmp_path: Path) -> Boot:
    """boot(name, manifest): lock, build and boot it until its checks have passed; the console."""

    def run(*arguments: str) -> str:
        done = subprocess.run([edge, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        log = tmp_path / "console.log"
        console = log.read_text(errors="replace")[-6000:] if log.exists() else ""
        assert done.returncode == 0, f"{done.stderr}\n{console}"
        return done.stdout

    def boot(name: str, text: str) -> str:
        (tmp_path / f"{name}.yaml").write_text(text)
        run("lock", f"{name}.yaml")
        run("build", "qemu-aarch64", "--system", f"{name}.yaml", "-o", "out", "--relock-if-gone")
        said = run(
            "boot", "qemu-aarch64", "-o", "out", "--smoke", "--json", "--timeout", "1800", "--log", "console.log"
        )
        assert json.loads(said)["stages"][-1]["stage"] == "checks"
        return (tmp_path / "console.log").read_text(errors="replace")

    return boot


def test_a_system_on_an_image_of_ours_with_a_container_image_in_it(
    boot: Boot, stock: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    shutil.copy(stock("qemu-aarch64") / "system.img", tmp_path / "base")
    (tmp_path / "files/etc").mkdir(parents=True)
    (tmp_path / "files/etc/product").write_text("one\n")
    layers = [files(lower="original", gone="x"), files(lower="changed", **{".wh.gone": ""})]
    write_layout(tmp_path / "app.oci", image(layers))
    console = boot("on-base", ON_BASE)
    for check in ("ssh.service", "base", "layers", "overlay", "modules"):
        assert f"erofs-edge: smoke ok {check}" in console


def test_network_manager_in_the_place_of_networkd(boot: Boot) -> None:
    console = boot("nm", NETWORK_MANAGER)
    for check in ("NetworkManager.service", "profile", "alone"):
        assert f"erofs-edge: smoke ok {check}" in console
