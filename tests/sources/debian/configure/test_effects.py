# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import re
import stat

import msgspec
import pytest
from sources.debian.configure.made import link_of, package, some_accounts, text_of, tree_with

from erofs_edge.errors import SourceError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure import effects as fx
from erofs_edge.sources.debian.configure.apply import apply_effect, owner_ids
from erofs_edge.sources.debian.configure.shells import update_shells
from erofs_edge.tree import FileTree

TEXT = "#!/bin/sh\nmkdir -p /srv/x\n"
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()


def apply(tree: FileTree, **effect: object) -> None:
    apply_effect(tree, msgspec.convert(effect, fx.Effect), some_accounts(), "pkg")


def test_the_table_that_comes_with_the_program_is_well_formed() -> None:
    table = fx.load_table()
    # the 48 postinsts and 23 preinsts of the stock set, and its config scripts
    assert len(table) >= 51 and sum(map(len, table.values())) >= 76
    for name, scripts in table.items():
        for script, entry in scripts.items():
            assert script in fx.SCRIPTS
            assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in entry.sha256) and entry.sha256, (name, script)
            assert entry.effects or entry.note, f"{name} {script} says neither what it does nor why nothing"


def test_scripts_are_known_changed_or_unknown() -> None:
    table = {
        "known": {"postinst": fx.Script([DIGEST])},
        "changed": {"postinst": fx.Script(["0" * 64])},
        "partly": {"preinst": fx.Script([DIGEST])},
    }
    packages = [package(n, postinst=TEXT, preinst=TEXT) if n == "partly" else package(n, postinst=TEXT)
                for n in ("unknown", "partly", "known", "changed")]  # fmt: skip
    packages.append(package("silent", prerm=TEXT))
    found = [(k.package, k.script, k.entry is None, k.changed) for k in fx.known_scripts(packages, table)]
    assert found == [
        ("changed", "postinst", False, True),
        ("known", "postinst", False, False),
        ("partly", "preinst", False, False),
        ("partly", "postinst", True, False),
        ("unknown", "postinst", True, False),
    ]


ADDED = """# Automatically added by {tool}/13.24.2
if [ "$1" = "configure" ]; then
\tanything at all
fi
# End automatically added section
"""


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("#!/bin/sh\nset -e\n\nexit 0\n", True),
        ("#!/bin/sh\n# words\n" + ADDED.format(tool="dh_installsystemd"), True),
        ("#!/bin/sh\n" + ADDED.format(tool="dh_python3") + ADDED.format(tool="dh_makeshlibs"), True),
        ('case "$1" in\n  configure|triggered)\n  ;;\n  *)\n ;;\nesac\n', True),
        ("#!/bin/bash\nupdate-alternatives --install /usr/bin/t \\\n  t /usr/bin/tool 10\n", True),
        ("#!/bin/sh\n" + ADDED.format(tool="dh_ucf"), False),
        ("#!/bin/sh\n" + ADDED.format(tool="dh_installsystemd") + "adduser --system x\n", False),
        ("#!/bin/sh\nupdate-alternatives --install /usr/bin/t t $(which tool) 10\n", False),
        ("#!/bin/sh\nupdate-alternatives --install /usr/bin/t t /usr/bin/tool 10; rm -r /etc\n", False),
        ("#!/bin/sh\nexit 0; rm /etc/x\n", False),
        ("#!/usr/bin/perl\n", False),
        ("# Automatically added by dh_installsystemd/13\nrm /etc/x\n", False),
    ],
)
def test_scripts_that_only_do_what_is_read_anyway(text: str, plain: bool) -> None:
    assert fx.is_plain(text) is plain
    (known,) = fx.known_scripts([package("p", postinst=text)], {})
    assert (known.entry is not None, known.changed) == (plain, False)


def test_files_are_made_only_where_nothing_is() -> None:
    tree = tree_with({"usr/share/x/profile": "default", "etc/mine": "mine"})
    apply(tree, do="copy", **{"from": "usr/share/x/profile", "to": "etc/profile"})
    apply(tree, do="copy", **{"from": "usr/share/x/profile", "to": "etc/mine"})
    apply(tree, do="copy", **{"from": "usr/share/x/absent", "to": "etc/absent"})
    apply(tree, do="file", path="etc/log", mode="0664", owner="root:mail", text="t")
    apply(tree, do="file", path="etc/mine", text="other")
    apply(tree, do="directory", path="srv/mail", mode="2775", owner="web:mail")
    assert text_of(tree, "etc/profile") == "default" and text_of(tree, "etc/mine") == "mine"
    assert tree.get("etc/absent") is None
    log, folder = tree.get("etc/log"), tree.get("srv/mail")
    assert (stat.S_IMODE(log.mode), log.uid, log.gid) == (0o664, 0, 8)
    assert (stat.S_IMODE(folder.mode), folder.uid, folder.gid) == (0o2775, 33, 8)


def test_links_replace_empty_directories_only() -> None:
    tree = tree_with({"var/run/": "", "var/full/file": "x", "etc/old": "->elsewhere"})
    for path in ("var/run", "var/full", "etc/old"):
        apply(tree, do="link", path=path, target="/run")
    assert link_of(tree, "var/run") == "/run" and link_of(tree, "etc/old") == "/run"
    assert tree.get("var/full").is_dir


def test_permissions_of_what_is_there() -> None:
    tree = tree_with({"usr/bin/agent": "x"})
    apply(tree, do="permissions", path="usr/bin/agent", mode="2755", owner="root:web")
    apply(tree, do="permissions", path="usr/bin/absent", mode="2755", owner="root:web")
    node = tree.get("usr/bin/agent")
    assert (stat.S_IMODE(node.mode), node.uid, node.gid) == (0o2755, 0, 34)
    with pytest.raises(SourceError, match="no group 'nobody-knows'") as caught:
        apply(tree, do="permissions", path="usr/bin/agent", mode="2755", owner="root:nobody-knows")
    assert "base-passwd" in (caught.value.hint or "")


def test_nss_services_are_appended_once() -> None:
    text = "# passwd: x\npasswd:         files\ngroup:  files # why\nhosts: files dns\nshadow: files systemd\n"
    tree = tree_with({"etc/nsswitch.conf": text})
    for _ in range(2):
        apply(tree, do="nss", service="systemd", databases=["passwd", "group", "shadow"])
    assert text_of(tree, "etc/nsswitch.conf") == (
        "# passwd: x\npasswd:         files systemd\ngroup:  files systemd # why\n"
        "hosts: files dns\nshadow: files systemd\n"
    )


@pytest.mark.parametrize(
    ("owner", "ids"), [("web:mail", (33, 8)), ("web", (33, 34)), ("7:9", (7, 9)), ("7", (7, 7)), ("0:web", (0, 34))]
)
def test_owners(owner: str, ids: tuple[int, int]) -> None:
    assert owner_ids(some_accounts(), owner, "") == ids


def test_shells_as_update_shells_merges_them() -> None:
    """The order of update-shells (debianutils 5.23): the template, then each shell and its path behind the links."""
    tree = tree_with(
        {
            "bin": "->usr/bin",
            "usr/bin/": "",
            "usr/share/debianutils/shells": "# /etc/shells: valid login shells\n/bin/sh\n",
            "usr/share/debianutils/shells.d/dash": "/usr/bin/dash#small\n",
            "usr/share/debianutils/shells.d/bash": "/bin/bash\n/usr/bin/bash\n",
        }
    )
    update_shells(tree)
    assert text_of(tree, "etc/shells") == (
        "# /etc/shells: valid login shells\n/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n/usr/bin/dash\n"
    )


def test_a_table_from_the_cache_is_the_one_of_the_text(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx, "_KEPT", {})
    fx.load_table.cache_clear()
    fresh = fx.load_table()
    fx.recall_table(cache)
    fx.load_table.cache_clear()
    monkeypatch.setattr(fx, "_KEPT", {})
    fx.recall_table(Cache(cache.root))
    fx.load_table.cache_clear()
    monkeypatch.setattr("ruamel.yaml.YAML", None)
    assert fx.load_table() == fresh
    # a table of another text is not taken
    monkeypatch.setattr(fx, "_text", lambda: "{}")
    fx.load_table.cache_clear()
    with pytest.raises(TypeError, match="not callable"):
        fx.load_table()
    monkeypatch.undo()
    fx.load_table.cache_clear()
