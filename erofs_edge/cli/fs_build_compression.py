# SPDX-License-Identifier: Apache-2.0
"""`fs build -z` and `--compress-hints`: compression in mkfs.erofs's notation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from erofs_edge.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.erofs.rules import CompressionRule

SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20}
_DICTIONARY = r"(0x[0-9a-f]+|\d+)([KM]?)"  # as mkfs.erofs accepts it


class Algorithm(NamedTuple):
    """An algorithm of -z. `dictionary` is in bytes, None if not given; if `exact`, every file gets the level."""

    name: str
    level: int | None = None
    dictionary: int | None = None
    exact: bool = False


def parse_algorithms(text: str) -> list[Algorithm]:
    """Parse 'zstd,3', 'lzma,level=6,dictsize=65536', 'lz4hc,9,exact' or 'lz4hc,9:zstd'. The first algorithm applies to
    all files without a hint.

    Raises UsageError.
    """
    found = [_algorithm(one, text) for one in text.split(":")]
    if len(found) > 1 and any(one.name == "none" for one in found):
        raise UsageError(
            f"-z {text}: 'none' cannot be combined with other algorithms",
            hint="a hint with cluster size 0 leaves files uncompressed",
        )
    return found


def _algorithm(text: str, whole: str) -> Algorithm:
    name, *words = text.split(",")
    exact = name == "lz4hc" and "exact" in words
    words = [word for word in words if not exact or word != "exact"]
    values: dict[str, int] = {}
    for word in words:
        key, equals, value = word.rpartition("=")
        key = key if equals else "level"
        number = re.fullmatch(_DICTIONARY if key == "dictsize" else r"(\d+)()", value, re.ASCII | re.I)
        if key not in ("level", "dictsize"):
            raise UsageError(f"-z {whole}: unknown option {key!r}", hint="known options: level=N and dictsize=SIZE")
        if not number:
            example = "zstd,3,dictsize=64K" if key == "dictsize" else "lz4hc,9"
            raise UsageError(f"-z {whole}: the {key} {value!r} is not a number", hint=f"for example -z {example}")
        if key in values:
            raise UsageError(f"-z {whole}: two values for {key}")
        values[key] = int(number[1], 0 if number[1][:2] in ("0x", "0X") else 10) * SUFFIXES[number[2].upper()]
    if name == "none" and words:
        raise UsageError("-z none has no levels")
    return Algorithm(
        name, values.get("level"), values.get("dictsize") or None, exact
    )  # 0: chosen automatically, as in mkfs.erofs


def read_hints(path: Path, algorithms: list[Algorithm], block_size: int) -> tuple[CompressionRule, ...]:
    """Read the rules of a hints file: lines '<cluster bytes> [<algorithm number of -z>] <regex>', '#' for comments.

    A cluster of 0 bytes leaves files uncompressed. An expression may match anywhere in a path without its leading
    '/'; if several lines match, the first one wins. Raises UsageError, with the line.
    """
    from erofs_edge.erofs.rules import CompressionRule
    from erofs_edge.sources.regex import compile_regex

    rules = []
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the hints: {error.strerror}", where=str(path)) from error
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            continue
        if len(words) == 3:
            size, index, pattern = words[0], words[1], words[2].rstrip()
        elif len(words) == 2:
            size, index, pattern = words[0], "0", words[1]
        else:
            raise UsageError(
                "a hint needs a cluster size and a regular expression", where=where, hint=r"for example: 65536 1 \.so$"
            )
        if not re.fullmatch(r"\d+", size, re.ASCII) or not re.fullmatch(r"\d+", index, re.ASCII):
            raise UsageError(f"'{size} {index}' is not a cluster size in bytes and an algorithm's number", where=where)
        if int(index) >= len(algorithms):
            raise UsageError(
                f"-z names no algorithm {index}", where=where, hint="they are numbered from 0: -z lz4hc:zstd"
            )
        try:
            expression = compile_regex(pattern)
        except ValueError as error:
            raise UsageError(f"bad expression {pattern!r}: {error}", where=where) from error
        one = algorithms[int(index)]
        rule = CompressionRule(match=expression, compression="none")
        if int(size) and one.name != "none":
            rule = CompressionRule(
                match=expression,
                compression=one.name,
                level=one.level,
                pcluster=int(size),
                dictionary=one.dictionary,
            )
        try:
            rule.check(block_size)
        except UsageError as error:
            raise UsageError(error.message, where=where, hint=error.hint) from error
        rules.append(rule)
    return tuple(rules)
