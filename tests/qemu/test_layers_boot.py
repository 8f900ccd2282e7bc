# SPDX-License-Identifier: Apache-2.0
"""A system with layers in real QEMU: the target merges its extensions and gives an app its root, all signed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("qemu"), pytest.mark.timeout(2400)]

HELLO = """\
system: hello
kind: sysext
entries:
  - {path: /usr/bin/hello, text: "#!/bin/sh\\necho hello from the layer\\n", mode: 0755}
  - path: /usr/lib/systemd/system/hello.service
    text: |
      [Service]
      Type=oneshot
      RemainAfterExit=yes
      ExecStart=/usr/bin/hello
      [Install]
      UpheldBy=multi-user.target
units: {enable: [hello.service]}
"""
SETTINGS = 'system: settings\nkind: confext\nentries: [{path: /etc/hello.conf, text: "layer\\n"}]\n'
BOX = """\
system: box
kind: app
entries:
  - {path: /usr/lib/os-release, text: "ID=box\\n"}
  - {path: /lib, type: symlink, target: usr/lib}
  - {path: /etc/where, text: "in the box\\n"}
"""
DEVICE = """\
system: device
extends: edge-base
layers: [hello.yaml, settings.yaml, box.yaml]
packages+: [libcryptsetup12]
entries:
  - path: /usr/lib/systemd/system/box.service
    text: |
      [Service]
      Type=oneshot
      RemainAfterExit=yes
      RootImage=/usr/lib/erofs-edge/layers/app/box.raw
      RootImagePolicy=root=signed
      BindReadOnlyPaths=/usr
      ExecStart=/usr/bin/grep -x "in the box" /etc/where
      [Install]
      WantedBy=multi-user.target
units: {enable+: [box.service]}
smoke:
  seconds: 1500
  units: [hello.service, box.service]
  commands:
    merged: hello | grep -x 'hello from the layer'
    status: systemd-sysext status --no-legend | grep -w hello
    confext: grep -x layer /etc/hello.conf && touch /etc/still-writable
    unsigned: >-
      mkdir -p /var/lib/extensions && echo no image > /var/lib/extensions/hello.raw &&
      ! systemctl restart systemd-sysext.service && ! test -e /usr/bin/hello
    back: rm -f /var/lib/extensions/hello.raw; systemctl restart systemd-sysext.service && hello
"""


def test_a_running_target_merges_its_layers_and_refuses_what_nobody_signed(edge: str, tmp_path: Path) -> None:
    texts = {"hello": HELLO, "settings": SETTINGS, "box": BOX, "device": DEVICE}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)

    def run(*arguments: str) -> str:
        done = subprocess.run([edge, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        log = tmp_path / "console.log"
        console = log.read_text(errors="replace")[-6000:] if log.exists() else ""
        assert done.returncode == 0, f"{done.stderr}\n{console}"
        return done.stdout

    locked = json.loads(run("lock", "device.yaml", "--json"))["locks"]
    assert [lock["name"] for lock in locked] == ["device", "hello", "settings", "box"]
    run("build", "qemu-aarch64", "--system", "device.yaml", "-o", "out", "--relock-if-gone")
    record = json.loads((tmp_path / "out/release.json").read_text())
    assert {name: layer["kind"] for name, layer in record["layers"].items()} == {
        "box": "app",
        "hello": "sysext",
        "settings": "confext",
    }
    said = run(
        "boot", "qemu-aarch64", "-o", "out", "--smoke", "--json", "--timeout", "1800", "--log", "console.log",
    )  # fmt: skip
    assert json.loads(said)["stages"][-1]["stage"] == "checks"
    console = (tmp_path / "console.log").read_text(errors="replace")
    for check in ("hello.service", "box.service", "merged", "status", "confext", "unsigned", "back"):
        assert f"erofs-edge: smoke ok {check}" in console
