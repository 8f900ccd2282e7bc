# SPDX-License-Identifier: Apache-2.0
"""The gate: each promise that is broken is named, the others are tried all the same, and the exit code is one."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from made_build import EPOCH, Made, make_build

from erofs_edge.build.record import write_json
from erofs_edge.bundle.rauc import Label, write_bundle
from erofs_edge.cli.main import cli
from erofs_edge.errors import BootCheckError, VerificationError
from erofs_edge.qemu.smoke import Observer
from erofs_edge.release.bundles import BUNDLES, NOTHING, RAUC, Wish, wish_of, write_bundles
from erofs_edge.release.gate import PROMISES, TAMPERS, Row, Wanted, check_release
from erofs_edge.release.rebuild import Rebuilt, Verdict
from erofs_edge.trust.certificate import self_signed
from erofs_edge.trust.key import KeySigner

BOARD = """
board: lab
disk:
  size: 16M
  partitions:
    boot: {size: 1M, slots: [a, b], content: fit}
    system: {size: 4M, slots: [a, b], content: lab-system.yaml}
    misc: {size: 1M, content: slot-state}
boot:
  u_boot: {package: u-boot-qemu, path: /u-boot.bin}
  cmdline: [console=ttyAMA0]
"""
SYSTEM = "system: lab-system\nsize_budget: {partition: 1M}\n"


def inputs(board: str, system: str) -> bytes:
    """inputs.tar of a release."""
    out = io.BytesIO()
    index = {"board": "lab.yaml", "system": "lab-system.yaml", "epoch": 0}
    with tarfile.open(fileobj=out, mode="w") as tar:
        texts = {"inputs.json": json.dumps(index), "lab.yaml": board, "lab-system.yaml": system}
        for name, text in texts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


class Machine:
    """In place of QEMU: what was started, and what goes wrong."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.wrong: set[str] = set()
        self.patience: list[float] = []

    def smoke(self, board: Any, out: Path, *, tamper: str | None = None, observer: Observer) -> SimpleNamespace:
        self.started.append(tamper or "boot")
        self.patience.append(observer.timeout)
        if (tamper or "boot") in self.wrong:
            raise BootCheckError(f"'{tamper}' did not end as expected: it booted\nlast lines of the console:\n  | x")
        return SimpleNamespace(slot="a", seconds=11.4)

    def fall_back(self, board: Any, out: Path, *, scenario: str, observer: Observer) -> SimpleNamespace:
        self.started.append(scenario)
        self.patience.append(observer.timeout)
        if scenario in self.wrong:
            raise BootCheckError("slot a never came up")
        return SimpleNamespace(slot="a", fell_from="b", starts=3)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr("erofs_edge.qemu.smoke.smoke", made.smoke)
    monkeypatch.setattr("erofs_edge.qemu.fallback.fall_back", made.fall_back)
    return made


@pytest.fixture
def remade(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """What a rebuild finds."""
    found = [Verdict("system.img", "ab", "ab"), Verdict("disk.img", "cd", "cd")]
    monkeypatch.setattr("erofs_edge.release.gate.rebuild", lambda release, out, **more: Rebuilt(out, found))
    return found


@pytest.fixture
def release(tmp_path: Path) -> Made:
    made = make_build(tmp_path / "release", KeySigner("owner", rsa.generate_private_key(65537, 2048)))
    record = json.loads((made.out / "release.json").read_text())
    record["board"], record["sign"]["rollback_index"], record["system"]["slots"] = "lab", 3, ["a", "b"]
    record["arch"], record["system"]["name"] = "arm64", "lab-system"
    write_json(made.out / "release.json", record)
    (made.out / "inputs.tar").write_bytes(inputs(BOARD + "qemu: {}\n", SYSTEM))
    write_bundles(made.out, Wish(True, "https://host.example/new"), made.signer)
    made.seal()
    return made


def tried(release: Made, **wanted: Any) -> dict[str, Row]:
    rows = check_release(release.out, release.signer, Wanted(**wanted))
    assert [row.name for row in rows] == list(PROMISES)
    return {row.name: row for row in rows}


def test_all_is_kept(release: Made, machine: Machine, remade: list[Verdict], tmp_path: Path) -> None:
    shutil.copytree(release.out, tmp_path / "old")
    rows = tried(release, earlier=(tmp_path / "old",), update_max=0)
    assert [row.kept for row in rows.values()] == [True] * len(PROMISES), rows
    assert machine.started == ["boot", *TAMPERS, "panic"]
    assert machine.patience == [180.0] * (1 + len(TAMPERS)) + [600.0]
    assert rows["rebuild"].detail == "2 files are the same" and rows["updates"].detail == "0 bytes from old"
    assert rows["size"].detail.endswith(" of 1048576 bytes")


def test_each_broken_promise_is_named_and_the_others_are_tried(
    release: Made, machine: Machine, remade: list[Verdict], tmp_path: Path
) -> None:
    machine.wrong = {"boot", "wrong-key", "panic"}
    remade[1] = Verdict("disk.img", "cd", "ef")
    old = replace(release, out=tmp_path / "old")
    shutil.copytree(release.out, old.out)
    (old.out / "system.img").write_bytes(bytes(4096))
    old.seal()
    release.flip("boot.fit", 5000)
    (release.out / "inputs.tar").write_bytes(inputs(BOARD + "qemu: {}\n", SYSTEM.replace("1M", "64K")))
    rows = tried(release, earlier=(old.out,), update_max=4096)
    assert {name for name, row in rows.items() if row.kept is False} == set(PROMISES)
    assert "boot.fit" in rows["signatures"].detail and "disk.img" in rows["rebuild"].detail
    assert rows["tampering"].detail == "'wrong-key' did not end as expected: it booted"
    assert "the budget is 65536" in rows["size"].detail and "the budget is 4096" in rows["updates"].detail
    assert rows["fallback"].detail == "slot a never came up"


def test_what_cannot_be_tried_is_said(release: Made, machine: Machine, remade: list[Verdict]) -> None:
    (release.out / "inputs.tar").write_bytes(inputs(BOARD, "system: lab-system\n"))
    (release.out / BUNDLES).unlink()
    release.seal()
    rows = tried(release, skip=frozenset({"rebuild"}))
    assert {name for name, row in rows.items() if row.kept is None} == set(PROMISES) - {"signatures"}
    assert rows["boot"].detail == "the board cannot be run in QEMU" and rows["rebuild"].detail == "skipped"
    (release.out / "inputs.tar").unlink()
    release.seal()
    assert "a build, not a release" in tried(release)["rebuild"].detail and not machine.started


def test_damaged_inputs_are_told_alike_by_all_that_need_them(
    release: Made, machine: Machine, remade: list[Verdict]
) -> None:
    whole = (release.out / "inputs.tar").read_bytes()
    (release.out / "inputs.tar").write_bytes(whole[: whole.index(b"board: lab") + 20])
    release.seal()
    rows = tried(release)
    told = {rows[name].detail for name in ("rebuild", "boot", "tampering", "fallback", "size")}
    assert len(told) == 1 and "unexpected end of data" in told.pop() and not machine.started


def test_bundles_of_another_build_are_told(release: Made, machine: Machine, remade: list[Verdict]) -> None:
    """All that `release.json` says of the files is right, and yet a device would refuse them or get something else."""
    image = next(release.out.glob("*.raw"))
    assert tried(release)["bundles"].detail == f"of this build: {RAUC}, {image.name}"
    good, other = (release.out / RAUC).read_bytes(), KeySigner("other", rsa.generate_private_key(65537, 2048))
    write_bundle(release.out, release.out / RAUC, other, self_signed(other, EPOCH))
    release.seal()
    rows = tried(release)
    assert rows["signatures"].kept and "does not match key 'owner'" in rows["bundles"].detail
    certificate = self_signed(release.signer, EPOCH)
    write_bundle(release.out, release.out / RAUC, release.signer, certificate, Label(version="9"))
    release.seal()
    assert "a bundle of another build" in tried(release)["bundles"].detail
    (release.out / RAUC).write_bytes(good)
    release.flip(image.name, image.stat().st_size // 2)
    release.seal()
    assert "not the system of this build" in tried(release)["bundles"].detail
    image.unlink()
    release.seal()
    assert "not the system of this build" in tried(release)["bundles"].detail


def test_partitions_for_sysupdate(release: Made, machine: Machine, remade: list[Verdict], tmp_path: Path) -> None:
    """Each partition is a file of the release, of this build, and the same when the bundles are made again."""
    for old in [*release.out.glob("*.raw"), *release.out.glob("*.transfer")]:
        old.unlink()
    wish = Wish(False, "https://host.example/new", "partitions")
    write_bundles(release.out, wish, release.signer)
    release.seal()
    assert wish_of(release.out) == wish
    said = json.loads((release.out / BUNDLES).read_text())["sysupdate"]
    kinds = ["root-verity-sig", "root-verity", "root"]
    assert [name.split(".")[-2] for name in said["files"]] == kinds and len(said["definitions"]) == 3
    assert tried(release)["bundles"].detail == f"of this build: {', '.join(said['files'])}"
    again = tmp_path / "again"
    shutil.copytree(release.out, again, ignore=shutil.ignore_patterns("*.raw", "*.transfer", BUNDLES))
    write_bundles(again, wish_of(release.out), release.signer)
    for name in [BUNDLES, *said["files"], *said["definitions"]]:
        assert (again / name).read_bytes() == (release.out / name).read_bytes(), name
    for name in (said["files"][1], said["definitions"][0]):
        kept = (release.out / name).read_bytes()
        release.flip(name, len(kept) // 2)
        release.seal()
        assert f"{name}: not the system of this build" in tried(release)["bundles"].detail
        (release.out / name).write_bytes(kept)
    said["files"].pop()
    write_json(release.out / BUNDLES, {"sysupdate": said})
    release.seal()
    assert "names other files than this build gives" in tried(release)["bundles"].detail


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"rauk": {}}',
        '{"sysupdate": {}}',
        '{"sysupdate": []}',
        '{"sysupdate": {"url": 1}}',
        '{"sysupdate": {"url": "x", "form": "box", "files": [], "definitions": []}}',
        '{"sysupdate": {"url": "x", "form": "image", "files": [1], "definitions": []}}',
    ],
)
def test_a_damaged_list_of_bundles(tmp_path: Path, text: str) -> None:
    assert wish_of(tmp_path) == NOTHING
    (tmp_path / BUNDLES).write_text(text)
    with pytest.raises(VerificationError):
        wish_of(tmp_path)


def test_the_command(release: Made, machine: Machine, remade: list[Verdict], tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, ["release", "--check", str(release.out), *words])

    done = run()
    assert done.exit_code == 0 and "kept       boot        slot a is up after 11 s" in done.stdout, done.output
    assert "not tried  updates     no earlier release was named" in done.stdout
    machine.wrong = {"system"}
    done = run("--json", "--skip", "rebuild")
    assert done.exit_code == 4
    said, _ = json.JSONDecoder().raw_decode(done.stdout)  # the error is a record of its own, behind it
    assert said["kept"] is False
    assert [one["name"] for one in said["promises"] if one["kept"] is False] == ["tampering"]
    machine.patience.clear()
    assert run("--timeout", "900").exit_code == 4
    assert machine.patience[:2] == [900.0, 900.0] and machine.patience[-1] == 900.0
    assert run("--timeout", "0").exit_code == 2
    assert "--from FOLDER" in run("--update-budget", "20M").stderr, "and not a release that passes without its update"
    assert run("--skip", "nothing").exit_code == 2 and run("--update-budget", "x").exit_code == 2
    assert run(*(word for name in PROMISES for word in ("--skip", name))).exit_code == 4
    other = KeySigner("other", rsa.generate_private_key(65537, 2048))
    from erofs_edge.trust.key import public_key_pem

    (tmp_path / "other.pem").write_bytes(public_key_pem(other))
    assert run("--key", str(tmp_path / "other.pem"), "--skip", "tampering").exit_code == 4
    assert CliRunner().invoke(cli, ["release", "lab.yaml"]).exit_code == 2, "making one still wants its key"
