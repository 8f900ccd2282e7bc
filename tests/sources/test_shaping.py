# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of a system beyond packages and files: rules, templates, kinds left out, network, budgets."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from sources.debian.configure.made import link_of, text_of

from erofs_edge.errors import CapacityError, ManifestError
from erofs_edge.manifest.load import load_system
from erofs_edge.manifest.model import Lock
from erofs_edge.sources.budget import check_image, check_paths
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.system import system_tree
from erofs_edge.tree import FileTree

Build = Callable[[str], FileTree]
UNITS = {
    "usr/lib/systemd/system/systemd-networkd.service": "[Install]\nWantedBy=multi-user.target\n",
    "usr/lib/systemd/system/NetworkManager.service": "[Install]\nWantedBy=multi-user.target\n",
}


@pytest.fixture
def over(tmp_path: Path) -> Callable[..., None]:
    """Files of the overlay `over`."""

    def make(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "over" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    make({"etc/base": "base"})
    return make


@pytest.fixture
def build(tmp_path: Path, cache: Cache, over: Callable[..., None]) -> Build:
    def build(text: str) -> FileTree:
        (tmp_path / "m.yaml").write_text("system: m\n" + text)
        lock = Lock(name="m", suite="trixie", arch="arm64", date=86400, requested={}, packages={})
        return system_tree(load_system(tmp_path / "m.yaml"), lock, {}, cache).tree

    return build


def test_rules_of_an_overlay(build: Build, over: Callable[..., None]) -> None:
    over({"etc/secret/key": "k", "etc/secret/note": "n", "usr/bin/ping": "p"})
    tree = build("""\
overlay:
  - from: over
    rules:
      - {match: /etc/secret/**, mode: '0640', owner: '0:42'}
      - {match: /etc/secret/key, mode: '0600'}
      - {match: /etc/secret, owner: '7:7'}
      - {match: /usr/bin/ping, mode: '0755', xattrs: {security.capability: '0x0102', user.a: text}}
""")
    found = {
        path: (stat.S_IMODE(node.mode), node.uid, node.gid)
        for path in ("etc/secret", "etc/secret/key", "etc/secret/note", "etc/base")
        if (node := tree.get(path)) is not None
    }
    assert found == {
        "etc/secret": (0o755, 7, 7),
        "etc/secret/key": (0o600, 0, 42),
        "etc/secret/note": (0o640, 0, 42),
        "etc/base": (0o644, 0, 0),
    }
    ping = tree.get("usr/bin/ping")
    assert ping is not None
    assert ping.xattrs == {b"security.capability": b"\1\2", b"user.a": b"text"} and ping.mode & 0o777 == 0o755


def test_a_rule_that_matches_nothing(build: Build) -> None:
    with pytest.raises(ManifestError, match=r"m\.yaml:2:\d+: no path of the overlay matches '/etc/nothing'"):
        build("overlay: [{from: over, rules: [{match: /etc/nothing, mode: '0600'}]}]\n")


def test_templates_know_their_variables_and_nothing_else(build: Build, over: Callable[..., None]) -> None:
    over({"etc/motd": "@HOSTNAME@ runs @SYSTEM@ for @CUSTOMER@, mail a@b, @lower@\n", "etc/raw": "@HOSTNAME@"})
    text = "hostname: gw\nvariables: {CUSTOMER: ACME}\noverlay: [{from: over, templates: [/etc/motd]}]\n"
    tree = build(text)
    assert text_of(tree, "etc/motd") == "gw runs m for ACME, mail a@b, @lower@\n"
    assert text_of(tree, "etc/raw") == "@HOSTNAME@"
    over({"etc/motd": "one\n  @CUSTMER@\n"})
    with pytest.raises(ManifestError, match=r"etc/motd:2:3: the template names @CUSTMER@") as caught:
        build(text)
    assert "CUSTOMER" in (caught.value.hint or "")


def test_kinds_left_out(build: Build, over: Callable[..., None]) -> None:
    over(dict.fromkeys(
        ["usr/share/man/man1/x.1", "usr/share/doc/x/copyright", "usr/share/doc/x/README", "usr/share/locale/de/x.mo",
         "usr/share/locale/fr/x.mo", "usr/share/info/x", "usr/share/lintian/x"], "x"))  # fmt: skip
    tree = build("drop: [doc, info, lintian, locale, man]\nlocales: [de]\noverlay: [{from: over}]\n")
    left = {path for path, inode in tree.walk() if inode.is_file and path.startswith(b"/usr")}
    assert left == {b"/usr/share/doc/x/copyright", b"/usr/share/locale/de/x.mo"}


def test_firmware_by_name_with_what_its_links_lead_to(build: Build, over: Callable[..., None], tmp_path: Path) -> None:
    over(dict.fromkeys([f"usr/lib/firmware/{name}" for name in ("brcm/a.bin", "cypress/b.bin", "other/c.bin")], "x"))
    (tmp_path / "over/usr/lib/firmware/brcm/link.bin").symlink_to("../cypress/b.bin")
    (tmp_path / "over/usr/lib/firmware/brcm/again.bin").symlink_to("link.bin")
    tree = build("overlay: [{from: over}]\nfirmware: [brcm/again*]\n")
    left = {path.decode() for path, inode in tree.walk() if path.startswith(b"/usr/lib/firmware/")}
    assert left == {
        f"/usr/lib/firmware/{name}" for name in ("brcm", "brcm/again.bin", "brcm/link.bin", "cypress", "cypress/b.bin")
    }
    assert tree.get("usr/lib/firmware/other") is None
    with pytest.raises(ManifestError, match="no firmware matches 'nvidia/"):
        build("overlay: [{from: over}]\nfirmware: ['nvidia/*']\n")


LINKS = """\
network:
  manager: {manager}
  links:
    lan: {{match: [en*, eth*]}}
    plant:
      {{match: [eth7], dhcp: 'no', addresses: [192.0.2.7/24, '2001:db8::7/64'], gateway: 192.0.2.1, dns: [192.0.2.53]}}
overlay: [{{from: over}}]
"""


def test_network_for_networkd(build: Build, over: Callable[..., None]) -> None:
    over(UNITS)
    tree = build(LINKS.format(manager="systemd-networkd"))
    assert text_of(tree, "usr/lib/systemd/network/70-lan.network") == "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n"
    assert text_of(tree, "usr/lib/systemd/network/70-plant.network").splitlines()[4:] == [
        "DHCP=no", "Address=192.0.2.7/24", "Address=2001:db8::7/64", "Gateway=192.0.2.1", "DNS=192.0.2.53",
    ]  # fmt: skip
    assert link_of(tree, "etc/systemd/system/multi-user.target.wants/systemd-networkd.service")


def test_network_for_network_manager(build: Build, over: Callable[..., None]) -> None:
    over(UNITS)
    tree = build(LINKS.format(manager="NetworkManager"))
    node = tree.get("usr/lib/NetworkManager/system-connections/plant.nmconnection")
    assert node is not None and stat.S_IMODE(node.mode) == 0o600
    text = node.read().decode()
    assert "interface-name=eth7;" in text
    assert (
        "[ipv4]\nmethod=manual\naddress1=192.0.2.7/24\ngateway=192.0.2.1\ndns=192.0.2.53;\n\n"
        "[ipv6]\nmethod=manual\naddress1=2001:db8::7/64\n" in text
    )
    assert "method=auto" in text_of(tree, "usr/lib/NetworkManager/system-connections/lan.nmconnection")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("network: {links: {}}\n", "systemd-networkd is not in the system"),
        ("network: {links: {a: {match: [x], addresses: [300.0.2.1/24]}}}\noverlay: [{from: over}]\n", "300.0.2.1"),
    ],
)
def test_a_network_that_cannot_be(build: Build, over: Callable[..., None], text: str, words: str) -> None:
    if "overlay" in text:
        over(UNITS)
    with pytest.raises(ManifestError, match=words) as caught:
        build(text)
    assert "m.yaml:2:" in str(caught.value)


def test_budgets_name_the_excess_and_the_ten_largest(build: Build, over: Callable[..., None], tmp_path: Path) -> None:
    over({f"usr/share/f{i:02}": "x" * (1000 + i) for i in range(12)})
    tree = build("overlay: [{from: over}]\nsize_budget: {partition: 1M, /usr/share: 12000, /usr/none: 1}\n")
    loaded = load_system(tmp_path / "m.yaml")
    with pytest.raises(CapacityError, match=r"/usr/share holds 11.8 KiB, its budget is 11.7 KiB: 66 bytes") as caught:
        check_paths(loaded, tree)
    rows = (caught.value.hint or "").splitlines()[1:]
    assert len(rows) == 10 and "/usr/share/f11" in rows[0] and "m.yaml" in rows[0] and "f02" in rows[-1]
    assert caught.value.where is not None and "m.yaml:3:" in caught.value.where
    node = tree.get("usr/share")
    assert node is not None
    del node.children[b"f00"]
    assert check_paths(loaded, tree) == [f"{tmp_path / 'm.yaml'}:3:49: /usr/none"], (
        "which has no bytes, but no files either"
    )
    check_image(loaded, tree, 1 << 20)
    with pytest.raises(CapacityError, match=r"the image is 1.0 MiB.*1 bytes too many"):
        check_image(loaded, tree, (1 << 20) + 1)


def test_a_budget_counts_hard_links_once(build: Build, over: Callable[..., None], tmp_path: Path) -> None:
    over({"opt/one": "x" * 100})
    tree = build("overlay: [{from: over}]\nsize_budget: {/opt: 150}\n")
    node = tree.get("opt/one")
    assert node is not None
    tree.add("opt/two", node)
    check_paths(load_system(tmp_path / "m.yaml"), tree)
