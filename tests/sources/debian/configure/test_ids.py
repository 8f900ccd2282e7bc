# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources.debian.configure.made import MASTERS, package, text_of, tree_with

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import System, User
from erofs_edge.sources.debian.configure import Ids, assign_ids, complete_accounts
from erofs_edge.tree import FileTree

# what trixie's dbus, udev, openssh-server and systemd ship
SYSUSERS = {
    "dbus.conf": 'u messagebus - "System Message Bus" /nonexistent\n',
    "debian-udev.conf": "g input -\ng sgx -\ng clock -\ng kvm -\ng render -\n",
    "openssh-server.conf": 'u sshd -:nogroup "sshd user" /run/sshd\n',
    "systemd-journal.conf": "g systemd-journal - -\n",
    "systemd-network.conf": 'u! systemd-network - "systemd Network Management"\n',
    "systemd-resolve.conf": 'u! systemd-resolve - "systemd Resolver"\n',
}
SSH = package("openssh-client", postinst="known by name")


def base(**more: str) -> FileTree:
    files = {f"usr/lib/sysusers.d/{name}": text for name, text in (SYSUSERS | more).items()}
    return tree_with(MASTERS | files)


def plain(**kw: object) -> System:
    return System(system="x", **kw)


def test_numbers_as_systemd_sysusers_gives_them() -> None:
    """What systemd-sysusers 252 gave for the same lines, passwd and group; _ssh is addgroup's."""
    users, groups = assign_ids([SSH], base(), plain(), Ids({}, {}))
    assert users == {"messagebus": 993, "sshd": 992, "systemd-network": 991, "systemd-resolve": 990}
    assert groups == {
        "_ssh": 101,
        "input": 999,
        "sgx": 998,
        "clock": 997,
        "kvm": 996,
        "render": 995,
        "systemd-journal": 994,
        "messagebus": 993,
        "systemd-network": 991,
        "systemd-resolve": 990,
    }


def test_files_of_the_stock_accounts() -> None:
    tree = base()
    users, groups = assign_ids([SSH], tree, plain(), Ids({}, {}))
    complete_accounts(tree, [SSH], plain(), Ids(users, groups), epoch=19675 * 86400 + 5)
    assert text_of(tree, "etc/passwd").splitlines()[:1] == ["root:x:0:0:root:/root:/bin/bash"]
    assert text_of(tree, "etc/passwd").splitlines()[-4:] == [
        "messagebus:x:993:993:System Message Bus:/nonexistent:/usr/sbin/nologin",
        "sshd:x:992:65534:sshd user:/run/sshd:/usr/sbin/nologin",
        "systemd-network:x:991:991:systemd Network Management:/:/usr/sbin/nologin",
        "systemd-resolve:x:990:990:systemd Resolver:/:/usr/sbin/nologin",
    ]
    shadow = text_of(tree, "etc/shadow").splitlines()
    assert shadow[0] == "root:*:19675:0:99999:7:::"
    assert shadow[-3:-1] == ["sshd:!*:19675::::::", "systemd-network:!*:19675:::::1:"]
    assert "staff:x:50:root" in text_of(tree, "etc/group").splitlines()
    assert text_of(tree, "etc/gshadow").splitlines()[-2:] == ["systemd-resolve:!*::", "_ssh:!::"]
    assert "root:*::" in text_of(tree, "etc/gshadow").splitlines()
    for name, mode, gid in (("passwd", 0o644, 0), ("group", 0o644, 0), ("shadow", 0o640, 42), ("gshadow", 0o640, 42)):
        node = tree.get(f"etc/{name}")
        assert (node.mode & 0o7777, node.uid, node.gid) == (mode, 0, gid)
    assert text_of(tree, "etc/subuid") == text_of(tree, "etc/subgid") == ""


def test_a_pinned_name_keeps_its_number_whatever_comes_and_goes() -> None:
    users, groups = assign_ids([SSH], base(), plain(), Ids({}, {}))
    later = base(**{"aaa.conf": "g aaa -\nu bbb -\n", "debian-udev.conf": "g kvm -\n"})
    users2, groups2 = assign_ids([SSH], later, plain(), Ids(users, groups))
    assert users2 == {**users, "bbb": 988}
    assert groups2 == {**groups, "aaa": 989, "bbb": 988}
    assert assign_ids([SSH], base(), plain(), Ids(users2, groups2)) == (users2, groups2)


@given(st.sets(st.sampled_from([f"n{i}" for i in range(12)]), max_size=8), st.data())
def test_old_pins_are_never_moved_nor_shared(names: set[str], data: st.DataObject) -> None:
    users: dict[str, int] = {}
    groups: dict[str, int] = {}
    for _ in range(3):
        lines = "".join(f"{data.draw(st.sampled_from(['u', 'g']))} {name} -\n" for name in sorted(names))
        old = Ids(dict(users), dict(groups))
        users, groups = assign_ids([], tree_with(MASTERS | {"usr/lib/sysusers.d/n.conf": lines}), plain(), old)
        assert old.users.items() <= users.items() and old.groups.items() <= groups.items()
        owners: dict[int, str] = {}
        for name, number in [*users.items(), *groups.items()]:
            assert owners.setdefault(number, name) == name
        names = data.draw(st.sets(st.sampled_from([f"n{i}" for i in range(12)]), max_size=8))


def test_a_name_that_the_lock_lacks_is_an_error_that_says_how_to_mend_it() -> None:
    with pytest.raises(ManifestError, match=r"'input' has no id in the lock") as caught:
        complete_accounts(base(), [], plain(), Ids({}, {}), epoch=0)
    assert "erofs-edge lock" in (caught.value.hint or "")


def test_fixed_numbers_come_first_ranges_and_owners_count() -> None:
    tree = base(
        **{
            "aaa.conf": "r - 200-202\ng one -\ng two -\n",
            "zzz.conf": "g three 202\nu tool /usr/bin/tool\nm tool mail\n",
        }
    )
    tree.merge(tree_with({"usr/bin/tool": ""}))
    tree.get("usr/bin/tool").uid, tree.get("usr/bin/tool").gid = 444, 8
    for name in list(SYSUSERS):
        tree.remove(f"usr/lib/sysusers.d/{name}")
    users, groups = assign_ids([], tree, plain(), Ids({}, {}))
    assert (users, groups) == ({}, {"one": 201, "two": 200})
    accounts = complete_accounts(tree, [], plain(), Ids(users, groups), epoch=0)
    assert (accounts.users["tool"].uid, accounts.users["tool"].gid) == (444, 8)
    assert accounts.groups["mail"].members == ["tool"]


def test_users_of_the_manifest() -> None:
    system = plain(
        users={
            "root": User(password="$6$x$y"),
            "anna": User(password="$6$a$b", groups=["staff", "app"], gecos="Anna"),
            "bot": User(uid=700, home="/var/lib/bot"),
            "daemon2": User(),
        },
        groups={"app": None, "fixed": 720},
    )
    tree = base()
    users, groups = assign_ids([], tree, system, Ids({}, {}))
    assert (users["anna"], users["daemon2"], groups["app"]) == (1000, 989, 101)
    assert "bot" not in users and "fixed" not in groups
    accounts = complete_accounts(tree, [], system, Ids(users, groups), epoch=86400)
    anna, bot = accounts.users["anna"], accounts.users["bot"]
    assert (anna.uid, anna.gid, anna.home, anna.shell) == (1000, 1000, "/home/anna", "/bin/bash")
    assert (bot.uid, bot.gid, bot.home, bot.shell, bot.password) == (
        700,
        700,
        "/var/lib/bot",
        "/usr/sbin/nologin",
        "!*",
    )
    assert accounts.groups["staff"].members == ["root", "anna"]
    assert accounts.groups["app"].members == ["anna"]
    assert accounts.groups["fixed"].gid == 720
    assert text_of(tree, "etc/shadow").splitlines()[0] == "root:$6$x$y:1:0:99999:7:::"
    assert accounts.users["root"].home == "/root"


@pytest.mark.parametrize(
    ("system", "message", "key"),
    [
        (plain(users={"a": User(uid=65534)}), "'a' and user 'nobody' would both have id 65534", "users.a"),
        (plain(groups={"a": 8}), "'a' and group 'mail' would both have id 8", "groups.a"),
        (plain(users={"a": User(uid=993)}), "'a' and user 'messagebus' would both have id 993", "users.a"),
        (plain(users={"root": User(uid=5)}), "'root' always has id 0 in Debian", "users.root.uid"),
        (plain(groups={"mail": 9}), "'mail' always has id 8 in Debian", "groups.mail"),
        (plain(users={"a": User(groups=["nope"])}), "is to be in group 'nope'", "users.a.groups"),
    ],
)
def test_collisions_have_the_position_of_the_manifest(system: System, message: str, key: str) -> None:
    pins = Ids({"messagebus": 993}, {"messagebus": 993})
    with pytest.raises(ManifestError, match=message) as caught:
        assign_ids([], base(), system, pins, position=lambda pointer: f"m.yaml:{pointer}")
    assert caught.value.where == f"m.yaml:{key}"


def test_a_system_without_base_passwd_keeps_its_own_accounts() -> None:
    tree = tree_with(
        {
            "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
            "etc/group": "root:x:0:\nshadow:x:42:\n",
            "etc/shadow": "root:$6$s$h:1:0:99999:7:::\n",
        }
    )
    accounts = complete_accounts(tree, [], plain(users={"web": User(uid=80)}), Ids({}, {}), epoch=86400)
    assert accounts.users["root"].password == "$6$s$h"
    assert text_of(tree, "etc/passwd").splitlines()[1] == "web:x:80:80::/nonexistent:/usr/sbin/nologin"
