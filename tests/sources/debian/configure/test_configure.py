# SPDX-License-Identifier: Apache-2.0
"""Whole runs over small packages whose scripts are in the table, are new, or are unknown."""

from __future__ import annotations

import stat

import pytest
from sources.debian.configure.made import MASTERS, link_of, package, text_of, tree_with
from sources.samples import rows

from erofs_edge.manifest.model import System, Units, User
from erofs_edge.sources.debian.configure import (
    Ids,
    Report,
    ScriptNote,
    assign_ids,
    complete_accounts,
    configure,
    effects,
    finish,
)
from erofs_edge.sources.debian.deb import Package
from erofs_edge.tree import FileTree

BASE = {
    **MASTERS,
    "usr/share/base-files/profile": "profile\n",
    "usr/share/base-files/dot.profile": "dot\n",
    "usr/bin/ssh-agent": "agent",
    "var/run/": "",
    "etc/dpkg/origins/debian": "Debian\n",
    "usr/lib/systemd/system/getty@.service": "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
    "usr/lib/systemd/system/odd.service": "[Install]\nWantedBy=multi-user.target\n",
    "usr/lib/sysusers.d/journal.conf": "g systemd-journal -\n",
}
ODD = "deb-systemd-helper was-enabled 'odd.service' && deb-systemd-helper enable 'odd.service'\n"
PACKAGES = [
    package("base-files", postinst="a new text"),
    package("openssh-client", postinst="a new text"),
    package("systemd", postinst="a new text"),
    package("odd", "2.0", postinst=ODD, config="ask"),
    package("quiet", prerm="x"),
]


def run(system: System, packages: list[Package] = PACKAGES, epoch: int = 86400) -> tuple[FileTree, Report]:
    tree = tree_with(BASE)
    ids = assign_ids(packages, tree, system, Ids({}, {}))
    report = configure(tree, packages, system, ids, epoch=epoch)
    accounts = complete_accounts(tree, packages, system, ids, epoch=epoch)
    finish(tree, system, accounts, report)
    return tree, report


def test_known_effects_apply_and_new_texts_are_named() -> None:
    tree, report = run(System(system="x"))
    assert [str(note) for note in report.unknown] == ["odd 2.0: config", "odd 2.0: postinst"]
    assert [note.package for note in report.changed] == ["base-files", "openssh-client", "systemd"]
    assert report.enabled == ["getty@tty1.service", "odd.service"]
    assert text_of(tree, "etc/profile") == "profile\n" and text_of(tree, "root/.profile") == "dot\n"
    assert link_of(tree, "var/run") == "/run" and link_of(tree, "etc/dpkg/origins/default") == "debian"
    mail, agent = tree.get("var/mail"), tree.get("usr/bin/ssh-agent")
    assert (stat.S_IMODE(mail.mode), mail.gid) == (0o2775, 8)
    assert (stat.S_IMODE(agent.mode), agent.gid) == (0o2755, 101)
    wants = "etc/systemd/system"
    assert link_of(tree, f"{wants}/getty.target.wants/getty@tty1.service") == "/usr/lib/systemd/system/getty@.service"
    assert link_of(tree, f"{wants}/multi-user.target.wants/odd.service") == "/usr/lib/systemd/system/odd.service"


def test_a_text_in_the_table_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_with(BASE)
    system = System(system="x")
    known = next(iter(effects.known_scripts(PACKAGES[:1])))
    table = {"base-files": {"postinst": effects.Script([known.sha256])}}
    monkeypatch.setattr(effects, "load_table", lambda: table)
    report = configure(tree, PACKAGES[:1], system, Ids({}, {"systemd-journal": 999}), epoch=0)
    assert report.unknown == report.changed == []
    assert tree.get("etc/profile") is None


def test_notes_for_the_user() -> None:
    script = ScriptNote("odd", "1.0", "postinst", "0" * 64)
    report = Report([script], [script], ["a.service"], ["/x.conf:1: h /usr/x"], ["user daemon"], ["m.yaml:1:1: /none"])
    starts = [
        "odd: postinst has not been reviewed",
        "odd: postinst has changed since it was reviewed",
        "m.yaml:1:1: /none matches nothing",
        "/x.conf:1: h /usr/x is not applied",
        "user daemon: a maintainer script made it",
    ]
    assert [note[: len(start)] for note, start in zip(report.notes, starts, strict=True)] == starts
    assert Report(enabled=["a.service"]).notes == []


def test_the_host_of_a_read_only_root() -> None:
    tree, _ = run(System(system="x", hostname="gateway"))
    assert text_of(tree, "etc/hostname") == "gateway\n"
    assert text_of(tree, "etc/machine-id") == "" and text_of(tree, "etc/.updated") == ""
    assert text_of(tree, "etc/locale.conf") == "LANG=C.UTF-8\n"
    assert all(line.startswith("#") for line in text_of(tree, "etc/fstab").splitlines())
    for point in ("data", "proc", "sys", "dev", "run", "tmp", "var"):
        assert tree.get(point).is_dir


def test_homes_and_keys() -> None:
    users = {
        "root": User(ssh_keys=["ssh-ed25519 AAAA root"]),
        "anna": User(password="$6$a$b", ssh_keys=["ssh-ed25519 AAAA a", "ssh-ed25519 BBBB b\n"]),
        "bert": User(password="$6$a$b", home="/var/home/bert"),
    }
    tree, _ = run(System(system="x", users=users))
    assert text_of(tree, "etc/ssh/authorized_keys.d/root") == "ssh-ed25519 AAAA root\n"
    assert text_of(tree, "etc/ssh/authorized_keys.d/anna") == "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n"
    assert "/etc/ssh/authorized_keys.d/%u" in text_of(tree, "etc/ssh/sshd_config.d/50-authorized-keys.conf")
    home = tree.get("home/anna")
    assert (stat.S_IMODE(home.mode), home.uid, home.gid) == (0o700, 1000, 1000)
    assert text_of(tree, "usr/lib/tmpfiles.d/erofs-edge-homes.conf") == "d /var/home/bert 0700 1001 1001 -\n"
    assert tree.get("var/home") is None


def test_units_of_the_manifest_have_the_last_word() -> None:
    tree, _ = run(System(system="x", units=Units(disable=["odd.service"], mask=["getty@tty1.service"])))
    assert tree.get("etc/systemd/system/multi-user.target.wants") is None
    assert link_of(tree, "etc/systemd/system/getty@tty1.service") == "/dev/null"


def test_the_order_of_packages_and_a_second_run_change_nothing() -> None:
    system = System(system="x", users={"anna": User(password="$6$a$b")})
    assert rows(run(system)[0]) == rows(run(system, PACKAGES[::-1])[0])
