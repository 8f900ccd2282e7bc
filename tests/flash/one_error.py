# SPDX-License-Identifier: Apache-2.0
"""What a command that failed says."""

from __future__ import annotations

from click.testing import Result


def told(result: Result) -> str:
    """The one error and its hint."""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("erofs-edge: ", "hint: "))]
    assert [line.partition(":")[0] for line in lines] == ["erofs-edge", "hint"], result.output
    return "\n".join(lines)
