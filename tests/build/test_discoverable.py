# SPDX-License-Identifier: Apache-2.0
"""A built system as a discoverable disk image: systemd-dissect accepts it, and its parts are those of the build."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from erofs_edge.cli.main import cli
from erofs_edge.disk import gpt
from erofs_edge.trust.key import read_public_key
from erofs_edge.trust.root_hash import verify_verity_signature

TYPES = ("root-arm64", "root-arm64-verity", "root-arm64-verity-sig")


def test_systemd_takes_a_built_system(
    stock: Callable[[str], Path], oracle: Callable[[str], str], tmp_path: Path
) -> None:
    out, image = stock("qemu-aarch64"), tmp_path / "edge.raw"
    done = CliRunner().invoke(cli, ["verity", "discoverable", str(out), str(image), "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads((out / "release.json").read_text())["system"]
    root_hash = record["root_hash"]
    assert json.loads(done.stdout)["root_hash"] == root_hash

    dissect = oracle("systemd-dissect")
    said = subprocess.run([dissect, "--validate", str(image)], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout.strip()) == (0, "OK"), said.stderr
    shown = subprocess.run([dissect, "--json=short", str(image)], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    mounts = json.loads(shown.stdout)["mounts"]
    assert [mount["designator"] for mount in mounts] == ["root", "root-verity", "root-verity-sig"]
    assert mounts[0]["fstype"] == "erofs"
    assert mounts[0]["verity"] == "signed"

    raw = image.read_bytes()
    table = gpt.decode(lambda at, length: raw[at : at + length], len(raw), 512)
    data, tree, signature = (raw[p.first_lba * 512 : (p.last_lba + 1) * 512] for p in table.partitions)
    built = (out / "system.img").read_bytes()
    assert data == built[: len(data)]
    assert len(data) == record["data_blocks"] * 4096
    assert built[record["hash_offset"] :].startswith(tree.rstrip(b"\0"))
    verify_verity_signature(signature, bytes.fromhex(root_hash), read_public_key(out / "sign.pub.pem", "dev"))
    assert [p.guid.bytes for p in table.partitions[:2]] == [
        bytes.fromhex(root_hash)[:16],
        bytes.fromhex(root_hash)[-16:],
    ]


@pytest.mark.parametrize(("change", "message"), [("cut", "shorter than its record"), ("record", "has no")])
def test_a_damaged_build(stock: Callable[[str], Path], tmp_path: Path, change: str, message: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("release.json", "system.verity-sig.json", "system.img"):
        shutil.copyfile(stock("qemu-aarch64") / name, out / name)
    record = json.loads((out / "release.json").read_text())
    if change == "cut":
        with (out / "system.img").open("r+b") as file:
            file.truncate(record["system"]["hash_offset"] + 8192)
    else:
        del record["system"]["hash_offset"]
        (out / "release.json").write_text(json.dumps(record))
    done = CliRunner().invoke(cli, ["verity", "discoverable", str(out), str(tmp_path / "x.raw")])
    assert done.exit_code != 0
    assert message in str(done.output) + str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
