# SPDX-License-Identifier: Apache-2.0
"""The JSON Schemas: fresh on disk, valid as schemas, as strict as the loader, and described on every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from manifest_samples import BOARD, SYSTEM

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import load_any
from erofs_edge.manifest.nodes import Mapping, Node, Scalar, parse_yaml, read_yaml
from erofs_edge.manifest.schema import KINDS, schema


def values(node: Node) -> object:
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Mapping):
        return {key: values(entry.node) for key, entry in node.entries.items()}
    return [values(item) for item in node.items]


def accepts(kind: str, value: object) -> bool:
    return bool(jsonschema.Draft7Validator(schema(kind)).is_valid(value))


def read(text: str) -> object:
    return values(parse_yaml(text, Path("x.yaml")))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_draft_7_schema_with_an_id(kind: str) -> None:
    jsonschema.Draft7Validator.check_schema(schema(kind))
    assert schema(kind)["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema(kind)["$id"] == f"urn:erofs-edge:schema:{kind}"
    assert "$defs" not in json.dumps(schema(kind))


def properties(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(part, dict):
        for key, value in part.get("properties", {}).items():
            yield f"{path}/{key}", value
        for key, value in part.items():
            yield from properties(value, f"{path}/{key}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind: str) -> None:
    found = dict(properties(schema(kind)))
    assert len(found) > 10
    for path, value in found.items():
        assert len(value.get("description", "")) > 5, path


@pytest.mark.parametrize("kind", KINDS)
def test_every_struct_refuses_unknown_keys(kind: str) -> None:
    for name, definition in schema(kind)["definitions"].items():
        assert definition["additionalProperties"] is False, name
        assert definition["description"], name


def test_the_samples_are_valid() -> None:
    assert accepts("board", read(BOARD))
    assert accepts("manifest", read(SYSTEM))
    assert not accepts("board", read(SYSTEM))
    assert not accepts("manifest", read(BOARD))


@pytest.mark.parametrize("kind", ["board", "manifest"])
def test_the_stock_files_are_valid_and_name_their_schema(repository: Path, kind: str) -> None:
    files = sorted((repository / f"{kind}s").glob("*.yaml"))
    assert files, f"no stock {kind}s"
    for file in files:
        errors = [
            error.message for error in jsonschema.Draft7Validator(schema(kind)).iter_errors(values(read_yaml(file)))
        ]
        assert not errors, file
        load_any(file)
        assert f"# yaml-language-server: $schema=../docs/schema/{kind}.schema.json" in file.read_text(), file


BROKEN = [
    ("demo.yaml", "partitions:", "partions:"),
    ("demo.yaml", "board: demo", "board: Demo"),
    ("demo.yaml", "board: demo", ""),
    ("demo.yaml", "size: 2G", "size: 2X"),
    ("demo.yaml", "size: 2G", "size: -1"),
    ("demo.yaml", "size: 2G", "size: rest"),
    ("demo.yaml", "size: 2G", "size: 2G\n  sector: 1024"),
    ("demo.yaml", "{size: 1M, ", "{"),
    ("demo.yaml", "    misc: ", "    Misc: "),
    ("demo.yaml", "[console=ttyAMA0]", "console=ttyAMA0"),
    ("demo.yaml", "cmdline:", "cmdline+:"),
    ("demo.yaml", "path: /usr", "path: usr"),
    ("demo.yaml", "path: /usr", "path: /a/../usr"),
    ("demo.yaml", "boot:\n", "sign: {key: x}\nboot:\n"),
    ("demo-system.yaml", "[systemd, udev]", "[systemd=257]"),
    ("demo-system.yaml", "hostname: demo", "hostname: null"),
    ("demo-system.yaml", "- from: files", "- to: /"),
    ("demo-system.yaml", "0640", "rw-r--r--"),
    ("demo-system.yaml", "directory: files", "directory: files\n    tar: x"),
    ("demo-system.yaml", "uid: 1000", "uid: 4294967295"),
    ("demo-system.yaml", "pi: {", "Pi: {"),
    ("demo-system.yaml", "uid: 1000", 'gecos: "a:b"'),
    ("demo-system.yaml", "ssh.service", "ssh"),
    ("demo-system.yaml", "text: hello", "type: dir"),
    ("demo-system.yaml", "level: 12", "level: 110"),
    ("demo-system.yaml", "{level: 12}", "[]"),
]


@pytest.mark.parametrize(("name", "old", "new"), BROKEN)
def test_what_the_schema_refuses_the_loader_refuses_too(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) == 1
    Path(name).write_text(text.replace(old, new))
    assert not accepts("board" if name == "demo.yaml" else "manifest", values(read_yaml(Path(name))))
    with pytest.raises(ManifestError):
        load_any(name)


def test_a_file_that_extends_another_may_be_a_part() -> None:
    assert accepts("board", read("extends: b.yaml\ndisk: {partitions: {data: {}, x: null}}\nboot: {cmdline+: [a]}"))
    assert accepts("board", read("extends: b.yaml\nqemu: null\ndisk: null"))
    assert accepts("manifest", read("extends: b.yaml\npackages+: [a1]\nusers: {pi: {groups+: [adm]}}"))
    assert not accepts("board", read("extends: b.yaml\nboot: {cmdline+: a}"))
    assert not accepts("board", read("extends: b.yaml\nbord: x"))
    assert not accepts("board", read("disk: {partitions: {}}")), "without extends it must be whole"


def test_locks(tmp_path: Path) -> None:
    from erofs_edge.manifest.lockfile import lock_bytes
    from erofs_edge.manifest.model import Lock

    lock = json.loads(lock_bytes(Lock(name="x", suite="sid", arch="arm64", date=1, requested={}, packages={"a": []})))
    assert accepts("lock", lock)
    assert not accepts("lock", lock | {"format": 2})
    assert not accepts("lock", lock | {"users": {"a": -1}})
    assert not accepts("lock", lock | {"packages": {"a": [{"name": "bb"}]}})
