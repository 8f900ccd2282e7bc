# SPDX-License-Identifier: Apache-2.0
"""What the machine says becomes moments, progress, and errors that name the package."""

from __future__ import annotations

import pytest

from erofs_edge.errors import SourceError, ToolError
from erofs_edge.vm.transcript import KEPT, Transcript


def told(*lines: str) -> Transcript:
    transcript = Transcript()
    for line in lines:
        transcript.see(line)
    return transcript


def test_moments_are_on_the_machines_clock() -> None:
    transcript = told(
        "[    1.1] kernel says",
        "erofs-edge: clock 1700000000.5 10.00",
        "11.25 processing: preinst: base-passwd",
        "12.00 processing: configure: libc6:arm64",
        "12.50 processing: trigproc: libc-bin",
        "erofs-edge: result ok",
    )
    assert transcript.moments == [
        (1700000001.75, "base-passwd"), (1700000002.5, "libc6"), (1700000003.0, "libc-bin"),
    ]  # fmt: skip
    assert transcript.seen == {"libc6"}
    transcript.check()


def test_only_a_packages_turn_is_progress() -> None:
    transcript = Transcript()
    assert transcript.see("1.0 processing: configure: a")
    assert not transcript.see("1.1 and it talks and talks")
    assert not transcript.see("1.2 status: a: half-configured")


def test_a_postinst_that_fails() -> None:
    transcript = told(
        "1.0 processing: configure: good",
        "1.1 nothing to do with it",
        "2.0 processing: configure: odd",
        "2.1 odd: cannot find the moon",
        "2.2 dpkg: error processing package odd (--configure):",
        "2.3  installed odd package post-installation script subprocess returned error exit status 3",
        "2.35 processing: trigproc: libc-bin",
        "2.36 Processing triggers for libc-bin",
        "2.4 Errors were encountered while processing:",
        "erofs-edge: result dpkg 1",
        "[    9.9] reboot: Power down",
    )
    with pytest.raises(
        SourceError, match=r"^the postinst script of odd failed with exit status 3; its last lines:"
    ) as e:
        transcript.check()
    assert "; its last lines:\n    odd: cannot find the moon" in e.value.message
    assert "good" not in e.value.message and "nothing to do" not in e.value.message and "reboot" not in e.value.message


def test_a_preinst_that_fails_without_a_word() -> None:
    transcript = told("1.0 processing: preinst: odd", "erofs-edge: result script preinst odd 127")
    transcript.stage = "preinst"
    with pytest.raises(SourceError, match=r"^the preinst script of odd failed with exit status 127 without a word$"):
        transcript.check()


@pytest.mark.parametrize(
    ("lines", "kind", "says"),
    [
        (["1.0 dpkg: error: no", "erofs-edge: result dpkg 2"], SourceError, "dpkg cannot configure the packages"),
        (["erofs-edge: result failed tar cannot pack the result"], ToolError, "scripts tar cannot pack the result"),
        (["[ 1.0] Kernel panic"], ToolError, "ended too early"),
        ([], ToolError, "ended too early without a word"),
    ],
)
def test_a_machine_that_fails(lines: list[str], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        told(*lines).check()


def test_a_script_that_hangs_is_named_with_its_last_lines_only() -> None:
    transcript = told("1.0 processing: configure: slow", *(f"2.0 line {i}" for i in range(100)), "3.0 " + "x" * 10000)
    error = transcript.hung(600)
    assert error.message.startswith("the postinst script of slow has not ended after 600 s; its last lines:")
    assert error.message.count("\n") == KEPT and "line 99" in error.message and len(error.message) < 2000
    assert "did not start within 5 s" in told().hung(5).message
