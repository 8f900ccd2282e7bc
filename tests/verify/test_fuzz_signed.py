# SPDX-License-Identifier: Apache-2.0
"""Every signed container, damaged at random from fixed seeds: never accepted with other content, never a crash."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixed_key import fixed_key
from made_build import make_build
from signed_containers import Container, containers, damage, judge

from erofs_edge.errors import ErofsEdgeError, FormatError
from erofs_edge.trust.certificate import load_certificate, self_signed
from erofs_edge.trust.key import read_public_key
from erofs_edge.verify.path import verify_path

KEY = fixed_key(1, "product")
ROUNDS = 400


@pytest.mark.parametrize("container", containers(KEY), ids=lambda one: one.name)
def test_containers(container: Container) -> None:
    container.accept(container.data)
    findings = [(seed, found[1]) for seed in range(ROUNDS) if (found := judge(container, seed)) is not None]
    assert findings == []


def test_a_finding_can_be_made_again() -> None:
    """The containers are the same each time: no signature holds chance or a time."""
    first, again = ([(one.name, one.data) for one in containers(KEY)] for _ in range(2))
    assert first == again


def test_a_certificate_of_a_version_that_there_is_not(tmp_path: Path) -> None:
    """Found by this test: it ended with a traceback of the library's own kind of error."""
    certificate = self_signed(KEY, 5)
    der = certificate.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x06", 1)
    with pytest.raises(FormatError, match=r"not an X\.509 certificate"):
        load_certificate(der, "x")
    path = tmp_path / "key.pem"
    text = base64.encodebytes(der).decode()
    path.write_text(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n")
    with pytest.raises(ErofsEdgeError, match="not a public key in PEM"):
        read_public_key(path, "x")


def test_the_judgement_itself() -> None:
    """What takes everything, or trips over it, is found out."""
    lax = Container("lax", b"some bytes", lambda raw: raw)
    crash = Container("crash", b"some bytes", lambda raw: 1 // (raw == b"some bytes"))
    assert (judge(lax, 0) or (b"", ""))[1] == "accepted with other content"
    assert "ZeroDivisionError" in (judge(crash, 0) or (b"", ""))[1]


def test_the_campaign(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "tools/fuzz-signed", "--cases", "30", "--seed", "7", "--out", str(tmp_path / "found")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("480 cases over 16 kinds, 0 findings\n") and not (tmp_path / "found").exists()


def test_release_records(tmp_path: Path) -> None:
    made = make_build(tmp_path / "out", KEY)
    path = made.out / "release.json"
    whole = path.read_bytes()
    (made.out / "disk.img").unlink()  # its rows would only cost time
    rng = random.Random(9)
    for _ in range(40):
        path.write_bytes(damage(whole, rng))
        assert not verify_path(made.out, KEY).ok


@pytest.mark.parametrize("name", ["system.root-hash.p7s", "system.verity-sig.json", "sign.crt", "release.json.p7s"])
def test_files_of_a_build_that_are_garbage(name: str, tmp_path: Path) -> None:
    made = make_build(tmp_path / "out", KEY)
    for garbage in (b"", b"\0" * 1000, b"{" * 2000, json.dumps({"rootHash": 1}).encode()):
        (made.out / name).write_bytes(garbage)
        assert not verify_path(made.out, KEY).ok
    shutil.rmtree(made.out)
