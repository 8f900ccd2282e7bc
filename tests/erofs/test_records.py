# SPDX-License-Identifier: Apache-2.0
"""Records: fields with defaults, given by name, and nothing else."""

from __future__ import annotations

import inspect

import pytest

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.errors import UsageError


def test_a_field_that_is_not_there() -> None:
    with pytest.raises(TypeError, match="WriteOptions has no blocksize, level_"):
        WriteOptions(block_size=512, level_=1, blocksize=512)  # type: ignore[call-arg]


def test_values_stay_and_are_checked_whenever_a_record_is_made() -> None:
    one = WriteOptions(compression="lz4")
    with pytest.raises(AttributeError, match="compression stays as it is"):
        one.compression = "zstd"  # type: ignore[misc]
    other = one.replaced(compression="zstd", level=3)
    assert (one.compression, one.level, other.compression, other.level) == ("lz4", None, "zstd", 3)
    with pytest.raises(UsageError, match="block size 1000"):
        one.replaced(block_size=1000)


def test_records_of_equal_values_are_equal() -> None:
    one, other = WriteOptions(block_size=4096), WriteOptions()
    assert one == other and hash(one) == hash(other)
    assert one != other.replaced(jobs=1) and one != "WriteOptions"


def test_what_help_shows() -> None:
    shown = inspect.signature(WriteOptions).parameters
    assert list(shown) == list(WriteOptions.__annotations__)
    assert (shown["block_size"].default, shown["uuid"].annotation) == (4096, "bytes | None")


def test_fields_come_in_order() -> None:
    fields = WriteOptions(level=3).fields()
    assert list(fields) == list(WriteOptions.__annotations__)
    assert fields["level"] == 3 and WriteOptions(**fields) == WriteOptions(level=3)
