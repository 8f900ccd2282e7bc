# SPDX-License-Identifier: Apache-2.0
"""`signer_certificate`: the device gets the certificate of its system's signer, with which RAUC accepts bundles."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import Loaded, load_system
from erofs_edge.manifest.model import System
from erofs_edge.sources.compose import lay_certificate
from erofs_edge.tree import FileTree
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.key import KeySigner

MANIFEST = """\
[update]
compatible=edge-base
version=2
[bundle]
format=verity
[image.system]
filename=system.img
"""


def manifest(tmp_path: Path, path: str) -> Loaded[System]:
    file = tmp_path / "s.yaml"
    file.write_text(f"system: s\nsigner_certificate: [{path}]\n")
    return load_system(file)


@pytest.mark.oracle
def test_rauc_takes_a_bundle_of_who_signs_the_system_and_no_other(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    key, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    tree = FileTree()
    lay_certificate(manifest(tmp_path, "/etc/rauc/keyring.pem"), self_signed(KeySigner("ours", key), 86400).pem, tree)
    node = tree.get("etc/rauc/keyring.pem")
    assert node is not None and node.mode == 0o100644
    (tmp_path / "keyring.pem").write_bytes(node.read())
    content = tmp_path / "content"
    content.mkdir()
    (content / "system.img").write_bytes(random.Random(4).randbytes(40_000))
    (content / "manifest.raucm").write_text(MANIFEST)
    said = {}
    for name, private in (("ours", key), ("foreign", other)):
        (tmp_path / f"{name}.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (tmp_path / f"{name}.crt").write_bytes(self_signed(KeySigner(name, private), 86400).pem)
        bundle = str(tmp_path / f"{name}.raucb")
        signer = ["--cert", str(tmp_path / f"{name}.crt"), "--key", str(tmp_path / f"{name}.pem")]
        environment = os.environ | {"PATH": f"{Path(oracle('mksquashfs')).parent}:{os.environ['PATH']}"}
        rauc = oracle("rauc")
        subprocess.run(
            [rauc, "bundle", *signer, str(content), bundle], env=environment, check=True, capture_output=True
        )
        command = [rauc, "info", "--keyring", str(tmp_path / "keyring.pem"), bundle]
        said[name] = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said["ours"].returncode == 0 and "Verified inline signature" in said["ours"].stderr
    assert said["foreign"].returncode != 0 and "signature verification failed" in said["foreign"].stderr


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    tree = FileTree()
    tree.directory("etc/rauc")
    with pytest.raises(ManifestError, match="/etc/rauc is not a file that could be replaced"):
        lay_certificate(manifest(tmp_path, "/etc/rauc"), b"", tree)
