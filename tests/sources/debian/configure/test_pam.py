# SPDX-License-Identifier: Apache-2.0
"""The expected stacks are what pam-auth-update (libpam-runtime 1.5.2) wrote for these profiles, blanks apart."""

from __future__ import annotations

import pytest
from sources.debian.configure.made import text_of, tree_with

from erofs_edge.errors import SourceError
from erofs_edge.sources.debian.configure.pam import STACKS, parse_profile, render_stacks
from erofs_edge.tree import FileTree

UNIX = """\
Name: Unix authentication
Default: yes
Priority: 256
Auth-Type: Primary
Auth:
	[success=end default=ignore]	pam_unix.so nullok try_first_pass
Auth-Initial:
	[success=end default=ignore]	pam_unix.so nullok
Account-Type: Primary
Account:
	[success=end new_authtok_reqd=done default=ignore]	pam_unix.so
Session-Type: Additional
Session:
	required	pam_unix.so
Session-Initial:
	required	pam_unix.so
Password-Type: Primary
Password:
	[success=end default=ignore]	pam_unix.so obscure use_authtok
Password-Initial:
	[success=end default=ignore]	pam_unix.so obscure yescrypt
"""
SYSTEMD = """\
Name: Register user sessions
Default: yes
Priority: 0
Session-Interactive-Only: yes
Session-Type: Additional
Session:
	optional	pam_systemd.so
"""
MKHOMEDIR = (
    "Name: Homes\nDefault: no\nPriority: 900\nSession-Type: Additional\nSession:\n\toptional\tpam_mkhomedir.so\n"
)
TWO = """\
Name: Two lines
Default: yes
Priority: 512
Auth-Type: Primary
Auth:
	[success=end default=ignore]	pam_first.so a b
	required	pam_second.so
Auth-Initial:
	[success=end default=ignore]	pam_first.so
	required	pam_second.so spaced
Password-Type: Additional
Password:
	optional	pam_keep.so
	[default=end]	pam_jump.so
"""


def rendered(**profiles: str) -> FileTree:
    files = {f"usr/share/pam-configs/{name}": text for name, text in profiles.items()}
    for stack in STACKS:
        name = "session_nonint" if stack == "session-noninteractive" else stack
        files[f"usr/share/pam/common-{stack}"] = f"# head\n${name}_primary\n# middle\n${name}_additional\n# end\n"
    tree = tree_with(files)
    render_stacks(tree)
    return tree


def blocks(tree: FileTree, stack: str) -> list[list[str]]:
    text = text_of(tree, f"etc/pam.d/common-{stack}")
    assert text.startswith("# head\n") and text.endswith("# end\n")
    first, second = text.removeprefix("# head\n").removesuffix("# end\n").split("# middle\n")
    return [[" ".join(line.split()) for line in block.splitlines()] for block in (first, second)]


def test_the_stock_profiles() -> None:
    tree = rendered(unix=UNIX, systemd=SYSTEMD, mkhomedir=MKHOMEDIR)
    permit = "session [default=1] pam_permit.so"
    assert blocks(tree, "auth") == [["auth [success=1 default=ignore] pam_unix.so nullok"], []]
    assert blocks(tree, "account") == [["account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so"], []]
    assert blocks(tree, "password") == [["password [success=1 default=ignore] pam_unix.so obscure yescrypt"], []]
    assert blocks(tree, "session") == [[permit], ["session required pam_unix.so", "session optional pam_systemd.so"]]
    assert blocks(tree, "session-noninteractive") == [[permit], ["session required pam_unix.so"]]


def test_jumps_over_several_lines_and_profiles() -> None:
    tree = rendered(unix=UNIX, two=TWO)
    assert blocks(tree, "auth")[0] == [
        "auth [success=3 default=ignore] pam_first.so",
        "auth required pam_second.so spaced",
        "auth [success=1 default=ignore] pam_unix.so nullok try_first_pass",
    ]
    # in the last block a jump to the end ends on the last line, not behind it
    assert blocks(tree, "password")[1] == ["password optional pam_keep.so", "password [default=0] pam_jump.so"]


def test_equal_priorities_stand_in_falling_order_of_names() -> None:
    line = "Default: yes\nPriority: 5\nSession-Type: Additional\nSession:\n\toptional\tpam_{}.so\n"
    tree = rendered(a=line.format("a"), b=line.format("b"))
    assert blocks(tree, "session")[1] == ["session optional pam_b.so", "session optional pam_a.so"]


def test_a_file_of_an_overlay_is_not_touched_and_a_broken_template_is_an_error() -> None:
    tree = tree_with({"usr/share/pam/common-auth": "nothing\n", "etc/pam.d/common-auth": "mine\n"})
    render_stacks(tree)
    assert text_of(tree, "etc/pam.d/common-auth") == "mine\n"
    tree.remove("etc/pam.d/common-auth")
    with pytest.raises(SourceError, match="auth_primary"):
        render_stacks(tree)


def test_profile_fields() -> None:
    profile = parse_profile("x", "Name: A: b\n# comment\nAuth:\n\tone\n\n\ttwo\nPriority: 7\n")
    assert profile.fields == {"name": ["A: b"], "auth": ["one", "two"], "priority": ["7"]}
