# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fnmatch
import random
import re

import pytest
from sources.debian.configure.made import tree_with

from erofs_edge.errors import ManifestError
from erofs_edge.globs import glob_regex
from erofs_edge.sources.globs import idle, matcher, sift


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/usr/share/man/**", ["/usr/share/man/man1/x.gz", "/usr/share/man/x"], ["/usr/share/man", "/usr/share/manx"]),
        ("/usr/share/doc/*/**", ["/usr/share/doc/a/b", "/usr/share/doc/a/b/c"], ["/usr/share/doc/a"]),
        ("/a/*.txt", ["/a/x.txt", "/a/.txt"], ["/a/b/x.txt", "/a/xytxt"]),
        ("**/x", ["/x", "/a/x", "/a/b/x"], ["/ax", "/x/y"]),
        ("/a/**/x", ["/a/x", "/a/b/c/x"], ["/a/bx"]),
        ("/a?[b-d]", ["/axb"], ["/axe", "/a/b"]),
        ("/a[!b]", ["/ac"], ["/ab", "/a"]),
        ("/a[^b]", ["/ac"], ["/ab"]),
        ("/[a&&b]", ["/&", "/a"], ["/&&"]),
        ("no/slash/in/front", ["/no/slash/in/front"], ["/x/no/slash/in/front"]),
        ("/dir/", ["/dir"], ["/dir/x"]),
        ("/a.b+(c)", ["/a.b+(c)"], ["/axb+(c)", "/a.bb(c)"]),
        ("/nürnberg", ["/nürnberg"], []),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    match = matcher([pattern])
    assert [path for path in yes if not match(path.encode())] == []
    assert [path for path in no if match(path.encode())] == []


def test_names_that_are_no_utf8_and_no_patterns_at_all() -> None:
    assert matcher(["/a/*"])(b"/a/\xff\n")
    assert not matcher([])(b"/a")


def test_patterns_that_match_nothing_are_told() -> None:
    tree = tree_with({"etc/a": "", "etc/b/c": ""})
    assert idle(tree, ["/etc/*", "none", "/etc/b/**", "/etc/b/d", "/etc"]) == [1, 3]
    assert idle(tree, []) == []


def test_a_pattern_that_means_nothing_has_its_position() -> None:
    with pytest.raises(ManifestError, match="bad glob") as caught:
        matcher(["/fine", "/[z-a]"], lambda index: f"m.yaml:{index}")
    assert caught.value.where == "m.yaml:1"


@pytest.mark.filterwarnings("error")
def test_within_a_name_they_mean_what_they_mean_to_python() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        pattern = "".join(draw.choices("abc*?[]!-", k=draw.randint(0, 7))).replace("**", "*")
        name = "".join(draw.choices("abc[]!-", k=draw.randint(0, 4)))
        try:
            ours = re.compile(glob_regex(pattern), re.S)
        except ValueError:
            continue  # a range that ends before it begins: Python's matches nothing
        assert bool(ours.fullmatch(name.encode())) == fnmatch.fnmatchcase(name, pattern), (pattern, name)


def test_sifting_keeps_what_is_kept_and_the_way_to_it() -> None:
    tree = tree_with(
        {
            "doc/a/copyright": "",
            "doc/a/examples/x": "",
            "doc/b/readme": "",
            "doc/link": "->a",
            "man/man1/x": "",
            "man/kept/deep/y": "",
            "other": "",
        }
    )
    gone = sift(tree, matcher(["/doc/*/**", "/man"]), matcher(["/doc/*/copyright", "/man/kept"]))
    assert [path.decode() for path, _ in tree.walk()] == [
        "/", "/doc", "/doc/a", "/doc/a/copyright", "/doc/b", "/doc/link", "/man", "/man/kept", "/man/kept/deep",
        "/man/kept/deep/y", "/other",
    ]  # fmt: skip
    assert gone == 5
