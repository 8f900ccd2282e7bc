# SPDX-License-Identifier: Apache-2.0
"""YAML text to nodes: positions, the core schema, and everything that is refused, within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    Mapping,
    Node,
    Scalar,
    Sequence,
    core_value,
    parse_yaml,
    read_yaml,
)

FILE = Path("x.yaml")


def plain(node: Node) -> object:
    """The node as Python values."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(entry.node) for key, entry in node.entries.items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-3", -3), ("+1", 1), ("0755", 755), ("0o17", 15), ("0xff", 255), ("true", True), ("FALSE", False),
        ("null", None), ("~", None), ("", None), ("1.5", 1.5), ("1e3", 1000.0), (".inf", float("inf")),
        ("-.inf", float("-inf")), ("yes", "yes"), ("off", "off"), ("12:30", "12:30"), ("1_000", "1_000"), (".", "."),
        ("2G", "2G"), ("NO", "NO"), ("0b1", "0b1"), ("1" * 31, int("1" * 31)), ("٣", "٣"), ("2001-01-01", "2001-01-01"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    assert core_value(text) == value
    assert type(core_value(text)) is type(value)


def test_quoted_scalars_are_text() -> None:
    assert plain(parse_yaml("['1', \"true\", '', 1]", FILE)) == ["1", "true", "", 1]


def test_every_node_knows_its_place() -> None:
    root = parse_yaml("# c\na:\n  - x\n  - {k: v}\n", FILE)
    assert isinstance(root, Mapping)
    entry = root.entries["a"]
    assert str(entry.mark) == "x.yaml:2:1"
    assert isinstance(entry.node, Sequence)
    assert [str(item.mark) for item in entry.node.items] == ["x.yaml:3:5", "x.yaml:4:5"]
    inner = entry.node.items[1]
    assert isinstance(inner, Mapping)
    assert (str(inner.entries["k"].mark), str(inner.entries["k"].node.mark)) == ("x.yaml:4:6", "x.yaml:4:9")


def test_aliases_give_the_same_value() -> None:
    assert plain(parse_yaml("a: &x {k: [1]}\nb: *x\n", FILE)) == {"a": {"k": [1]}, "b": {"k": [1]}}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "x.yaml: the file is empty", None),
        ("# only a comment\n", "x.yaml: the file is empty", None),
        ("~\n", "x.yaml: the file is empty", None),
        ("a: 1\nb: 2\na: 3\n", 'x.yaml:3:1: key "a" is already in line 1', None),
        ("a: !!python/object:os x", 'x.yaml:1:4: tags such as "tag:yaml.org,2002:python/object:os"', "quote"),
        ("a: !x {}", 'x.yaml:1:4: tags such as "!x"', "quote"),
        ("a: [1", "x.yaml:1:6: not YAML: ", None),
        ("a:\n\t- b", "x.yaml:2:1: not YAML: found character '\\t'", "YAML indents"),
        ("a: b: c", "x.yaml:1:5: not YAML: mapping values are not allowed", "quote"),
        ("a: 1\n b: 2", "x.yaml:2:3: not YAML: ", "quote"),
        ("a: 'abc", "x.yaml:1:8: not YAML: ", None),
        ("--- 1\n--- 2", "x.yaml:2:1: a second document", None),
        ("%YAML 1.1\n---\na: 1", "x.yaml:2:1: only YAML 1.2", "remove"),
        ("a: &a [*a]", 'x.yaml:1:8: no anchor "&a"', None),
        ("a: *nowhere", 'x.yaml:1:4: no anchor "&nowhere"', None),
        ("{[a]: 1}", "x.yaml:1:2: a key must be a word", None),
        ("? {a: 1}\n: 2", "x.yaml:1:3: a key must be a word", None),
        ("'': 1", "x.yaml:1:1: a key must be a word", None),
        ("a: \x01", "x.yaml:1:4: control character U+0001", None),
        ("a: 1\nb: x\x00", "x.yaml:2:5: control character U+0000", None),
        ('a: "\\ud800"', "x.yaml:1:4: U+D800 cannot be part of a value", "write the character itself, not an escape"),
        ('a: "x\\0"', "x.yaml:1:4: U+0000 cannot be part of a value", "leave it out"),
        ('{"\\udd80": 1}', "x.yaml:1:2: U+DD80 cannot be part of a value", "write the character itself"),
        ("@x", "x.yaml:1:1: not YAML: ", None),
    ],
)  # fmt: skip
def test_what_is_refused_and_where(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_yaml(text, FILE)
    assert str(caught.value).startswith(message)
    assert (caught.value.hint or "").startswith(hint or "")
    assert (caught.value.hint is None) == (hint is None)


def test_a_merge_key_is_a_key_like_any_other() -> None:
    assert plain(parse_yaml("a: &a {x: 1}\nb: {<<: *a}", FILE)) == {"a": {"x": 1}, "b": {"<<": {"x": 1}}}


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), f"aliases expand to more than {MAX_NODES} values"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)), "aliases nest deeper"),
        ("[" * 2000, f"nested deeper than {MAX_DEPTH} levels"),
        ("- " * 20_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("{a: " * 2000, f"nested deeper than {MAX_DEPTH} levels"),
        ("- x\n" * (2 * MAX_NODES), f"more than {MAX_NODES} values: not a manifest"),
        ("!" * 5000, "tags such as"),
    ],
    ids=["aliases", "alias chain", "flow", "block", "maps", "many", "tag"],
)
def test_hostile_text_is_refused_early(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        parse_yaml(text, FILE)
    assert len(str(caught.value)) < 300


def test_files_that_are_no_yaml_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ManifestError, match=r"x.yaml:2:4: not UTF-8: byte 0xff"):
        read_yaml(path)
    path.write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(ManifestError, match=r"x.yaml:1:1: not UTF-8"):
        read_yaml(path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ManifestError, match=r"larger than 256 KiB"):
        read_yaml(path)
    with pytest.raises(ManifestError, match=r"this is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(ManifestError, match=r"y.yaml: no such file") as caught:
        read_yaml(tmp_path / "y.yaml")
    assert caught.value.hint == f"did you mean {path}?"
    with pytest.raises(ManifestError, match="not a path"):
        read_yaml(Path("a\0b"))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert plain(read_yaml(path)) == {"a": 1}


YAML_TEXT = st.text(alphabet=st.sampled_from("ab1 :-[]{},&*!|>'\"%@`#?\n\t\\~.<=\x85\u2028é"), max_size=60)


@settings(max_examples=400, deadline=None)
@given(YAML_TEXT | st.text(max_size=40))
def test_any_text_is_nodes_or_one_manifest_error_with_a_place(text: str) -> None:
    try:
        root = parse_yaml(text, FILE)
    except ManifestError as error:
        assert str(error).startswith("x.yaml")
        return
    assert isinstance(root, Scalar | Sequence | Mapping)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(st.characters(categories=["L", "N", "P"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc:-#é", min_size=1), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(JSON_VALUES, min_size=1))
def test_json_is_yaml_with_the_same_meaning(value: object) -> None:
    import json

    assert plain(parse_yaml(json.dumps(value, ensure_ascii=False), FILE)) == value
