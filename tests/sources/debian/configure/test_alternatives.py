# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from sources.debian.configure.made import link_of, package, tree_with

from erofs_edge.sources.debian.configure.alternatives import (
    Choice,
    apply_alternatives,
    drop_dangling,
    parse_alternatives,
)

MAWK = """
        update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5 \\
            --slave /usr/share/man/man1/awk.1.gz awk.1.gz /usr/share/man/man1/mawk.1.gz \\
            --slave /usr/bin/nawk nawk /usr/bin/mawk
"""
LESS = """
    update-alternatives --quiet --install /usr/bin/pager pager \\
      /usr/bin/less 77 --slave /usr/share/man/man1/pager.1.gz \\
      pager.1.gz /usr/share/man/man1/less.1.gz
"""
MORE = "update-alternatives --install /usr/bin/pager pager /bin/more 50 || true\n"


def test_parsing_joined_lines_options_and_slaves() -> None:
    assert parse_alternatives(MAWK + LESS, "p") == [
        Choice(
            5,
            "p",
            (
                ("/usr/bin/awk", "awk", "/usr/bin/mawk"),
                ("/usr/share/man/man1/awk.1.gz", "awk.1.gz", "/usr/share/man/man1/mawk.1.gz"),
                ("/usr/bin/nawk", "nawk", "/usr/bin/mawk"),
            ),
        ),
        Choice(
            77,
            "p",
            (
                ("/usr/bin/pager", "pager", "/usr/bin/less"),
                ("/usr/share/man/man1/pager.1.gz", "pager.1.gz", "/usr/share/man/man1/less.1.gz"),
            ),
        ),
    ]


def test_what_is_no_installation_is_passed_over() -> None:
    text = (
        "# update-alternatives --install /a a /b 1\n"
        "update-alternatives --remove pager /bin/less\n"
        "update-alternatives --install /a a /b\n"
        'update-alternatives --install /a a "$x" 1\n'
        "update-alternatives --install /a a '/b 1\n"
        "update-alternatives --install /a a /b high\n"
    )
    assert parse_alternatives(text, "p") == []


def test_the_highest_priority_wins_and_what_is_missing_is_left_out() -> None:
    tree = tree_with(
        {
            "usr/bin/mawk": "",
            "usr/bin/less": "",
            "usr/bin/more": "",
            "bin": "->usr/bin",
            "usr/share/man/man1/mawk.1.gz": "",
        }
    )
    packages = [
        package("util-linux", postinst=MORE),
        package("less", postinst=LESS),
        package("mawk", postinst=MAWK),
        package("gone", postinst=MORE.replace("50", "99").replace("more", "gone")),
    ]
    apply_alternatives(tree, packages)
    assert link_of(tree, "usr/bin/pager") == "/etc/alternatives/pager"
    assert link_of(tree, "etc/alternatives/pager") == "/usr/bin/less"
    assert link_of(tree, "usr/bin/nawk") == "/etc/alternatives/nawk"
    assert link_of(tree, "etc/alternatives/awk.1.gz") == "/usr/share/man/man1/mawk.1.gz"
    assert tree.get("etc/alternatives/pager.1.gz") is None and tree.get("usr/share/man/man1/pager.1.gz") is None

    tree.remove("usr/share/man/man1/mawk.1.gz")
    drop_dangling(tree)
    assert tree.get("etc/alternatives/awk.1.gz") is None and tree.get("usr/share/man/man1/awk.1.gz") is None
    assert link_of(tree, "usr/bin/awk") == "/etc/alternatives/awk"


def test_of_equal_priorities_the_first_package_stays() -> None:
    tree = tree_with({"usr/bin/a": "", "usr/bin/b": ""})
    packages = [package(n, postinst=f"update-alternatives --install /usr/bin/x x /usr/bin/{n} 5\n") for n in ("b", "a")]
    apply_alternatives(tree, packages)
    assert link_of(tree, "etc/alternatives/x") == "/usr/bin/a"
