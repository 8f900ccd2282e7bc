# SPDX-License-Identifier: Apache-2.0
"""`extends`: how two files become one, and that each value keeps the place where it was said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.extend import MAX_CHAIN, merge
from erofs_edge.manifest.load import load_any, load_board, load_system
from erofs_edge.manifest.nodes import Mapping, Mark, Node, Scalar, Sequence


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def test_maps_join_lists_are_replaced_and_plus_appends(folder: Path) -> None:
    write(
        "p/product.yaml",
        "extends: ../demo.yaml\nboard: product\ndisk: {partitions: {boot: {size: 128M}}}\nboot:\n  cmdline+: [quiet]\n",
    )
    board = load_board("p/product.yaml")
    assert (board.value.board, board.value.extends) == ("product", None)
    boot = board.value.disk.partitions["boot"]
    assert (boot.size, boot.slots, boot.content) == ("128M", ["a", "b"], "fit")
    assert board.value.boot.cmdline == ["console=ttyAMA0", "quiet"]
    assert board.files == (Path("p/product.yaml"), Path("demo.yaml"))
    assert [board.position(f"boot.cmdline.{i}") for i in (0, 1)] == ["demo.yaml:11:13", "p/product.yaml:5:14"]
    assert board.position("disk.partitions.boot.size") == "p/product.yaml:3:28"
    assert board.position("disk.partitions.boot.content") == "demo.yaml:5:40"
    write("p/product.yaml", "extends: ../demo.yaml\nboot: {cmdline: [quiet]}\n")
    assert load_board("p/product.yaml").value.boot.cmdline == ["quiet"]


def test_paths_stay_relative_to_the_file_that_says_them(folder: Path) -> None:
    (folder / "p/files").mkdir(parents=True)
    write("p/s.yaml", "extends: ../demo-system.yaml\nsystem: s\noverlay+: [{from: files}]\n")
    system = load_system("p/s.yaml").value
    assert [overlay.from_ for overlay in system.overlay] == [f"{folder}/files", f"{folder}/p/files"]


def test_a_chain_applies_the_base_first(folder: Path) -> None:
    write("a.yaml", "extends: demo-system.yaml\npackages+: [a1]\nhostname: a\n")
    write("b.yaml", "extends: a.yaml\npackages+: [b1]\n")
    write("c.yaml", "extends: b.yaml\nsystem: c\npackages+: [c1]\nhostname: c\n")
    system = load_system("c.yaml")
    assert system.value.packages == ["systemd", "udev", "a1", "b1", "c1"]
    assert (system.value.hostname, load_system("b.yaml").value.hostname) == ("c", "a")
    assert system.files == tuple(Path(f"{n}.yaml") for n in ("c", "b", "a", "demo-system"))
    assert system.position("packages.3") == "b.yaml:2:13"


def test_plus_also_starts_a_list(folder: Path) -> None:
    write("a.yaml", "extends: demo-system.yaml\nkeep+: [/x]\nusers: {new: {groups+: [adm]}}\n")
    system = load_system("a.yaml").value
    assert system.keep == ["/x"]
    assert system.users["new"].groups == ["adm"]


def test_null_takes_a_key_away(folder: Path) -> None:
    write("a.yaml", "extends: demo-system.yaml\nusers: {pi: null}\nhostname: ~\noverlay: null\n")
    system = load_system("a.yaml")
    assert (system.value.users, system.value.hostname, system.value.overlay) == ({}, "edge", [])
    assert not system.is_written("hostname")


def test_nothing_written_takes_nothing_away(folder: Path) -> None:
    write("a.yaml", "extends: demo-system.yaml\nhostname:\n")
    with pytest.raises(ManifestError, match=r'a.yaml:2:1: "hostname" must be a host name') as caught:
        load_system("a.yaml")
    assert caught.value.hint == "give it a value, or remove the key"


def test_new_keys_come_before_the_next_key_of_the_base(folder: Path) -> None:
    head = "extends: demo.yaml\nboard: p\ndisk: {partitions: "
    write("p.yaml", head + "{x: {size: 1M}, misc: {}, y: {size: 2M}, z: {size: 3M}, data: {}}}\n")
    assert list(load_board("p.yaml").value.disk.partitions) == ["boot", "system", "x", "misc", "y", "z", "data"]
    write("p.yaml", head + "{x: {size: 1M}}}\n")
    with pytest.raises(ManifestError, match=r'demo.yaml:8:14: "rest" is for the last partition, and "x" comes after'):
        load_board("p.yaml")


def test_a_base_may_be_a_fragment(folder: Path) -> None:
    write("common.yaml", "hostname: common\nerofs: {level: 3}\n")
    write("s.yaml", "extends: common.yaml\nsystem: s\n")
    assert load_system("s.yaml").value.erofs.level == 3
    write("common.yaml", "hostnam: common\n")
    with pytest.raises(ManifestError, match=r'common.yaml:1:1: unknown key "hostnam"'):
        load_system("s.yaml")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.yaml": "extends: a.yaml"}, "a.yaml:1:10: extends itself by way of a.yaml"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "extends: ./x/../a.yaml"}, "b.yaml:1:10: extends itself by way of"),
        ({"a.yaml": "system: a\nextends: b.yaml"}, "a.yaml:2:10: extends b.yaml, which is not there"),
        ({"a.yaml": "extends: [b.yaml]"}, 'a.yaml:1:10: "extends" must be the path of a file'),
        ({"a.yaml": "extends: 7"}, 'a.yaml:1:10: "extends" must be the path of a file'),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "- x"}, "b.yaml:1:1: a map of keys and values is expected"),
        ({"a.yaml": "extends: b.yaml", "b.yaml": "x: ["}, "b.yaml:2:1: not YAML"),
        ({"a.yaml": "extends: demo-system.yaml\npackages+: x"}, "a.yaml:2:12: a key with + appends: its value must be"),
        (
            {"a.yaml": "extends: demo-system.yaml\npackages: []\npackages+: []"},
            'a.yaml:3:1: says both "packages" and "packages+"',
        ),
        ({"a.yaml": "extends: demo-system.yaml\nhostname+: [x]"}, 'a.yaml:2:12: "hostname" must be a host name'),
    ],
)
def test_what_is_wrong_is_named_in_the_file_that_says_it(folder: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        write(name, text + "\n")
    with pytest.raises(ManifestError) as caught:
        load_any("a.yaml")
    assert str(caught.value).startswith(message)


def test_long_chains_end(folder: Path) -> None:
    for index in range(MAX_CHAIN + 1):
        write(f"{index}.yaml", f"extends: {index + 1}.yaml\n")
    with pytest.raises(ManifestError, match=f"more than {MAX_CHAIN} files extend one another"):
        load_any("0.yaml")


def test_a_symlink_does_not_hide_a_cycle(folder: Path) -> None:
    write("a.yaml", "extends: link.yaml\n")
    Path("link.yaml").symlink_to("a.yaml")
    with pytest.raises(ManifestError, match=r"extends itself by way of link.yaml"):
        load_any("a.yaml")


HERE = Mark(Path("x"), 1, 1)


def node(value: object) -> Node:
    if isinstance(value, dict):
        from erofs_edge.manifest.nodes import Entry

        return Mapping(HERE, {key: Entry(HERE, node(item)) for key, item in value.items()})
    if isinstance(value, list):
        return Sequence(HERE, [node(item) for item in value])
    return Scalar(HERE, str(value), plain=True)


def plain(value: Node) -> object:
    if isinstance(value, Mapping):
        return {key: plain(entry.node) for key, entry in value.entries.items()}
    return [plain(item) for item in value.items] if isinstance(value, Sequence) else value.text


MAPS = st.dictionaries(
    st.sampled_from("abcde"),
    st.recursive(
        st.sampled_from(["1", "x"]) | st.lists(st.just("i"), max_size=2),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=5,
)


@given(MAPS, MAPS)
def test_merging_is_the_deep_union_with_the_upper_file_winning(
    base: dict[str, object], over: dict[str, object]
) -> None:
    def union(low: object, high: object) -> object:
        if isinstance(low, dict) and isinstance(high, dict):
            keys = [*low, *(key for key in high if key not in low)]
            return {
                key: union(low[key], high[key]) if key in low and key in high else {**low, **high}[key] for key in keys
            }
        return high

    low, high = node(base), node(over)
    assert isinstance(low, Mapping) and isinstance(high, Mapping)
    assert plain(merge(low, high)) == union(base, over)
    assert plain(merge(low, Mapping(HERE, {}))) == base
    assert plain(low) == base, "the base is not changed"
