# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from sources.debian.configure.made import tree_with

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.sysusers import Request, read_sysusers


def read(text: str) -> list[Request]:
    return read_sysusers(tree_with({"usr/lib/sysusers.d/x.conf": text}))


def test_every_form_of_a_user() -> None:
    found = read(
        "# a comment\n\n"
        'u messagebus - "System Message Bus" /nonexistent\n'
        "u sync 4:65534 - /bin /bin/sync\n"
        "u sshd -:nogroup 'sshd user' /run/sshd\n"
        'u! systemd-network - "systemd Network Management"\n'
        "u owner /usr/bin/tool\n"
    )
    where = "/usr/lib/sysusers.d/x.conf:"
    assert found == [
        Request("u", "messagebus", f"{where}3", gecos="System Message Bus", home="/nonexistent"),
        Request("u", "sync", f"{where}4", uid=4, gid=65534, home="/bin", shell="/bin/sync"),
        Request("u", "sshd", f"{where}5", group="nogroup", gecos="sshd user", home="/run/sshd"),
        Request("u", "systemd-network", f"{where}6", gecos="systemd Network Management", expired=True),
        Request("u", "owner", f"{where}7", owner_of="/usr/bin/tool"),
    ]


def test_groups_members_and_ranges() -> None:
    found = read("g adm 4 -\ng input -\nm root adm\nr - 500-900\nr - 7\n")
    assert [(r.kind, r.name, r.gid, r.group, r.range) for r in found] == [
        ("g", "adm", 4, "", (0, 0)),
        ("g", "input", None, "", (0, 0)),
        ("m", "root", None, "adm", (0, 0)),
        ("r", "", None, "", (500, 900)),
        ("r", "", None, "", (7, 7)),
    ]


@pytest.mark.parametrize("line", ["x what", "u", "u name abc", 'u name - "open', "r - 1-x"])
def test_a_bad_line_is_refused_with_its_place(line: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(f"g fine -\n{line}\n")
    assert caught.value.where == "/usr/lib/sysusers.d/x.conf:2"


def test_files_by_name_and_those_in_etc_before_packaged_ones() -> None:
    tree = tree_with(
        {
            "usr/lib/sysusers.d/b.conf": "g packaged-b -\n",
            "usr/lib/sysusers.d/c.conf": "g masked -\n",
            "usr/lib/sysusers.d/d.txt": "g not-a-conf -\n",
            "etc/sysusers.d/b.conf": "g local-b -\n",
            "etc/sysusers.d/a.conf": "g local-a -\n",
            "etc/sysusers.d/c.conf": "->/dev/null",
            "usr/local/lib/sysusers.d/e.conf": "g last -\n",
        }
    )
    assert [r.name for r in read_sysusers(tree)] == ["local-a", "local-b", "last"]
