# SPDX-License-Identifier: Apache-2.0
"""Writing and reading back, on a disk that misbehaves in every known way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faulty_target import FaultyTarget
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.errors import CapacityError, DeviceError, PartialWriteError, SourceError, VerificationError
from erofs_edge.flash import survey
from erofs_edge.flash.execute import RegionResult, flash
from erofs_edge.flash.image import Image
from erofs_edge.flash.local import FileTarget
from erofs_edge.flash.plan import plan_flash
from erofs_edge.flash.survey import Progress, compare

MIB = 1 << 20


class Steps:
    """Records the steps and how far each one reported to be."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.told: dict[str, tuple[int, int]] = {}

    @contextmanager
    def __call__(self, label: str) -> Iterator[Progress]:
        self.labels.append(label)
        yield lambda done, total: self.told.__setitem__(label, (done, total))


def run(image: Path, target: FaultyTarget, *, verify: bool = True, resume: bool = False) -> list[RegionResult]:
    plan, steps, found = plan_flash(image, target.identity), Steps(), None
    if resume:
        with Image(image) as source:
            found = compare(plan.regions, source, target, steps)
    return flash(plan, target, steps, verify=verify, found=found)


@pytest.mark.parametrize("size", [12, 20])
@pytest.mark.parametrize("short", [None, 1000])
def test_the_disk_holds_the_image(size: int, short: int | None, image: Path) -> None:
    target = FaultyTarget(size * MIB, short=short)
    results = run(image, target)
    assert target.memory[: 12 * MIB] == image.read_bytes()
    assert not any(target.memory[max(12, size - 1) * MIB :])
    assert target.finished
    for result in results:
        assert result.verified == result.size == result.written + result.zeroed + result.kept
    assert sum(result.written for result in results) < 2 * MIB


def test_steps_and_progress(image: Path) -> None:
    steps, target = Steps(), FaultyTarget(12 * MIB)
    flash(plan_flash(image, target.identity), target, steps)
    assert steps.labels[0] == "Erasing old table"
    assert "Writing 'boot' (8 KB)" in steps.labels
    assert "Zeroing 'data' (3072 KB)" in steps.labels
    assert steps.labels[-4:-2] == ["Writing 'gpt backup' (20 KB)", "Writing 'gpt' (20 KB)"]
    assert steps.labels.index("Verifying 'data'") < steps.labels.index("Writing 'gpt backup' (20 KB)")
    assert all(done == total for done, total in steps.told.values())
    assert len(steps.told) == len(steps.labels) - 1


def test_zeros_that_are_there_are_not_written(image: Path) -> None:
    target = FaultyTarget(12 * MIB, fill=b"\0")
    results = {result.name: result for result in run(image, target)}
    assert (results["data"].kept, results["data"].zeroed) == (3 * MIB, 0)
    assert [entry for entry in target.log if entry[0] == "zero"] == [("zero", 0, MIB)]  # the old table alone


def test_table_is_gone_first_and_comes_last(image: Path) -> None:
    target = FaultyTarget(12 * MIB)
    run(image, target)
    assert target.log[:2] == [("zero", 0, MIB), ("flush", 0, 0)]
    writes = [offset for kind, offset, _ in target.log if kind == "write"]
    assert writes[-1] == 0
    assert writes.count(0) == 1


@pytest.mark.parametrize("cut", [0, 1, 4000, 100_000, 1_200_000, 1_270_000])
@pytest.mark.parametrize(("code", "expected"), [(errno.EIO, PartialWriteError), (errno.ENODEV, DeviceError)])
def test_a_cut_says_how_to_go_on(cut: int, code: int, expected: type[Exception], image: Path) -> None:
    target = FaultyTarget(12 * MIB, cut=cut, code=code)
    with pytest.raises(expected) as caught:
        run(image, target)
    assert not target.finished
    assert not any(target.memory[:512])  # no table: nobody takes this for a good disk
    assert "--resume" in str(caught.value.hint)
    assert str(caught.value).startswith("/dev/faulty: offset 0x")
    target.cut = None
    results = run(image, target, resume=True)
    assert target.memory[: 12 * MIB] == image.read_bytes()
    assert sum(result.kept for result in results) >= 2 * MIB + cut // 1_200_000 * 1_000_000


def test_exit_codes() -> None:
    assert (PartialWriteError.exit_code, VerificationError.exit_code, DeviceError.exit_code) == (8, 4, 6)


def test_resume_writes_only_what_is_wrong(image: Path) -> None:
    target = FaultyTarget(12 * MIB)
    run(image, target)
    target.log.clear()
    target.memory[4 * MIB + 70_000] ^= 1
    target.memory[9 * MIB] = 1
    results = {result.name: result for result in run(image, target, resume=True)}
    assert (results["system"].written, results["data"].zeroed, results["boot"].written) == (4096, 4096, 0)
    assert target.memory == image.read_bytes()


@pytest.mark.parametrize("place", [MIB + 5, 4 * MIB + 1_200_000, 7 * MIB + 500_001, 9 * MIB, 3 * MIB + 7, 11 * MIB, 10])
def test_a_lying_disk_is_found_out(place: int, image: Path) -> None:
    """In data, in a hole inside a partition, in an empty partition, in a gap, in both tables."""
    target = FaultyTarget(12 * MIB, lies=(place,))
    with pytest.raises(VerificationError, match=f"in 1 block.* at byte {place // 4096 * 4096:#x}$") as caught:
        run(image, target)
    assert not target.finished
    assert caught.value.where == "/dev/faulty"
    if MIB < place < 11 * MIB:
        assert not any(target.memory[:512])
    assert run(image, FaultyTarget(12 * MIB, lies=(place,)), verify=False)


def test_a_counterfeit_card_is_found_out(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(9 * MIB)
        file.write(b"x" * 5000)
    with pytest.raises(VerificationError):
        run(image, FaultyTarget(12 * MIB, wraps=8 * MIB))


def test_a_read_error_while_verifying(image: Path) -> None:
    target = FaultyTarget(12 * MIB, fill=b"\0")
    plan = plan_flash(image, target.identity)
    target.bad = 4 * MIB + 4096
    with pytest.raises(PartialWriteError, match="reading back 'system' failed: Input/output error"):
        flash(plan, target, Steps())


def test_a_disk_that_takes_nothing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = FaultyTarget(12 * MIB)
    monkeypatch.setattr(target, "write", lambda offset, data: 0)
    with pytest.raises(PartialWriteError, match="takes no more"):
        run(image, target)


def test_an_image_that_shrinks(image: Path) -> None:
    target = FaultyTarget(12 * MIB)
    plan = plan_flash(image, target.identity)
    os.truncate(image, 5 * MIB)
    with pytest.raises(SourceError, match="shorter"):
        flash(plan, target, Steps())
    assert not target.finished


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extents=st.lists(st.tuples(st.integers(0, 255), st.integers(1, 20_000)), max_size=8),
    chunk=st.sampled_from([4096, 20_480, 4 << 20]),
    short=st.integers(1000, 100_000),
    size=st.integers(1, MIB),
)
def test_any_image(extents: list[tuple[int, int]], chunk: int, short: int, size: int, tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with path.open("wb") as file:
        for at, length in extents:
            file.seek(at * 4096)
            file.write(b"\x77" * length)
        file.truncate(size)
    target = FaultyTarget(2 * MIB, short=short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "CHUNK", chunk)
        run(path, target)
    assert target.memory[:size] == path.read_bytes()
    assert not any(target.memory[MIB:])


def test_new_file_appears_when_all_is_well(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "card"
    target = FileTarget(out, 12 * MIB)
    assert not out.exists()
    flash(plan_flash(image, target.identity), target, Steps())
    target.close()
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_blocks <= image.stat().st_blocks + 64  # as sparse as the image
    assert sorted(os.listdir(tmp_path)) == ["card", "disk.img"]


def test_new_file_vanishes_on_failure(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = FileTarget(tmp_path / "card", 12 * MIB)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target, "write", full)
    with pytest.raises(CapacityError, match="No space left"):
        flash(plan_flash(image, target.identity), target, Steps())
    target.close()
    assert os.listdir(tmp_path) == ["disk.img"]


def test_existing_file_is_changed_in_place(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "card"
    out.write_bytes(b"\xff" * (14 * MIB))
    inode = out.stat().st_ino
    target = FileTarget(out, 12 * MIB)
    flash(plan_flash(image, target.identity), target, Steps())
    target.close()
    raw = out.read_bytes()
    assert raw[: 12 * MIB] == image.read_bytes()
    assert raw[12 * MIB : 13 * MIB] == b"\xff" * MIB
    assert raw[13 * MIB :] == bytes(MIB)
    assert out.stat().st_ino == inode
