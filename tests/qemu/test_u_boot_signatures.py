# SPDX-License-Identifier: Apache-2.0
"""`bootm` of Debian's U-Boot and our FITs: every key size that it takes, and the kind of key that it does not."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from u_boot_alone import ADDRESS, Alone, read, small_fit

from erofs_edge.boot.fdt import Node, parse, string
from erofs_edge.boot.fit import SIGNATURE_PATH, public_key_node
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.trust.signer import KeySigner

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]
SIZES = (2048, 3072, 4096)
STEP = 256 << 10


@pytest.fixture(scope="module")
def signers() -> dict[int, KeySigner]:
    return {size: KeySigner(f"k{size}", rsa.generate_private_key(65537, size)) for size in SIZES}


def elliptic(oracle: Callable[[str], str], folder: Path) -> tuple[bytes, Node]:
    """A FIT that mkimage has signed with ECDSA on P-256, and the node of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "curve")])
    day = datetime.datetime(2024, 1, 1)
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day + datetime.timedelta(9999))
    (folder / "curve.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "curve.crt").write_bytes(certificate.sign(key, SHA256()).public_bytes(Encoding.PEM))
    (folder / "kernel").write_bytes(b"kernel")
    (folder / "t.its").write_text(
        '/dts-v1/; / { description = "t"; #address-cells = <1>; images { kernel { data = /incbin/("kernel");'
        ' type = "kernel_noload"; arch = "arm64"; os = "linux"; compression = "none"; load = <0>; entry = <0>;'
        ' hash-1 { algo = "sha256"; }; }; }; configurations { default = "conf"; conf { kernel = "kernel";'
        ' signature-1 { algo = "sha256,ecdsa256"; key-name-hint = "curve"; sign-images = "kernel"; }; }; }; };'
    )
    (folder / "t.dts").write_text("/dts-v1/; / { };")
    dtc = oracle("dtc")
    subprocess.run([dtc, "-O", "dtb", "-p", "4096", "-o", "key.dtb", "t.dts"], cwd=folder, check=True)
    path = {"PATH": f"{Path(dtc).parent}:{os.environ['PATH']}"}
    command = [oracle("mkimage"), "-f", "t.its", "-k", ".", "-K", "key.dtb", "-r", "t.fit"]
    done = subprocess.run(command, cwd=folder, env=os.environ | path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    node = parse((folder / "key.dtb").read_bytes()).root.at("/signature/curve")
    assert node is not None and node.props["ecdsa,curve"] == b"prime256v1\0", done.stdout
    return (folder / "t.fit").read_bytes(), node


def test_it_takes_rsa_of_every_size_and_no_curve(
    stock: Callable[[str], Path],
    signers: dict[int, KeySigner],
    tmp_path: Path,
    oracle: Callable[[str], str],
) -> None:
    """One start of U-Boot: with `required-mode` "any" one right signature of several keys is enough."""
    curve_fit, curve_key = elliptic(oracle, tmp_path)
    fits = {f"rsa{size}": small_fit(signer) for size, signer in signers.items()}
    assert all(len(fit) < STEP * 9 for fit in fits.values())
    broken = bytearray(fits["rsa4096"])
    place = broken.index(parse(bytes(broken)).root.at(SIGNATURE_PATH).props["value"])  # type: ignore[union-attr]
    broken[place + 100] ^= 1
    fits |= {"flipped": bytes(broken), "curve": curve_fit}
    alone = Alone(tmp_path, stock("qemu-aarch64") / "u-boot.bin", None, signers[2048])
    script, pieces, at = [], [], 0
    for name, fit in fits.items():
        start = f"bootm start {ADDRESS:x}#conf"
        script.append(
            f"echo try {name}; {read(at, len(fit))}; if {start}; then echo {name} good; else echo {name} bad; fi"
        )
        pieces.append((at, fit))
        at += -(-len(fit) // 4096) * 4096
    tree = alone.tree("; ".join([*script, "poweroff"]))
    keys = tree.root.children["signature"]
    keys.props["required-mode"] = string("any")
    keys.children = {f"key-{one.name}": public_key_node(one) for one in signers.values()} | {"key-curve": curve_key}
    curve_key.props["required"] = string("conf")
    console = alone.run(tree, pieces, size=at)
    for size in SIZES:
        assert f"sha256,rsa{size}:k{size}+ OK" in console, console[-3000:]
        assert f"\nrsa{size} good" in console
    assert "\nflipped bad" in console and "\ncurve bad" in console
    assert "sha256,ecdsa256:curve-" in console and "Unknown signature algorithm" in console


def test_a_curve_is_refused_when_signing_with_the_reason() -> None:
    with pytest.raises(ErofsEdgeError, match="RSA") as caught:
        small_fit(KeySigner("curve", ec.generate_private_key(ec.SECP256R1())))
    assert caught.value.hint
