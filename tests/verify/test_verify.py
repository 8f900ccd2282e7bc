# SPDX-License-Identifier: Apache-2.0
"""`verify`: whole things pass, and whatever is changed, swapped, unsigned or old is named in the row that guards it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixed_key import fixed_key
from made_build import MIB, PLACES, Made, make_build, make_fit

from erofs_edge.boot.contents import init_values
from erofs_edge.build.avb import add_hashtree_footer, hash_descriptor
from erofs_edge.build.signing import RELEASE_SIGNATURE, ROOT_HASH_SIGNATURE, VERITY_SIGNATURE
from erofs_edge.cli.main import cli
from erofs_edge.disk import gpt, rollback
from erofs_edge.errors import FormatError, UsageError
from erofs_edge.trust.avb import Chain, Descriptor, VBMeta, encode_key, write_vbmeta
from erofs_edge.trust.key import public_key_pem
from erofs_edge.verify.checks import Verdict
from erofs_edge.verify.path import verify_path
from erofs_edge.verity.tree import append

KEY = fixed_key(1, "product")
OTHER = fixed_key(2, "product")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_build(tmp_path_factory.mktemp("made") / "out", KEY)


@pytest.fixture
def made(template: Made, tmp_path: Path) -> Made:
    shutil.copytree(template.out, tmp_path / "out")
    return Made(tmp_path / "out", KEY, template.verity)


def failed(verdict: Verdict) -> dict[str, str]:
    return {check.what: check.error or "" for check in verdict.failed}


def at(partition: str, offset: int = 0) -> int:
    return PLACES[partition][0] * MIB + offset


def test_a_whole_build_passes(made: Made) -> None:
    verdict = verify_path(made.out, KEY)
    assert verdict.ok, failed(verdict)
    root = made.verity.root_hash.hex()
    rows = {check.what: check for check in verdict.checks}
    for what in ("system.img: tree", "system_a: tree", "system_b: tree", "boot_a: root hash"):
        assert rows[what].digest == root
    assert {"release.json", "boot_a: FIT", "boot_b: FIT", "system.img: file system", "partition table"} <= rows.keys()


def test_a_device_passes_without_the_record(made: Made) -> None:
    verdict = verify_path(made.out / "disk.img", KEY)
    assert verdict.ok, failed(verdict)
    assert {"boot_a: FIT", "system_a: tree", "system_a: file system", "system_b: tree"} <= {
        c.what for c in verdict.checks
    }
    assert sum(c.what.endswith("file system") for c in verdict.checks) == 1, "equal root hashes are equal bytes"


@pytest.mark.parametrize(
    ("file", "offset", "rows"),
    [
        ("release.json", 40, {"release.json"}),
        (RELEASE_SIGNATURE, 300, {"release.json"}),
        ("boot.fit", 3000, {"boot.fit"}),
        ("slots.bin", 9, {"slots.bin"}),
        (ROOT_HASH_SIGNATURE, 300, {ROOT_HASH_SIGNATURE}),
        (VERITY_SIGNATURE, 20, {VERITY_SIGNATURE}),
        ("system.img", 5000, {"system.img", "system.img: tree"}),
        ("disk.img", 446, {"partition table"}),
        ("disk.img", at("boot_a", 3000), {"disk.img"}),
        ("disk.img", at("system_b", 5000), {"disk.img"}),
        ("disk.img", at("system_b", 3 * MIB), {"disk.img"}),
        ("disk.img", at("data", 5), {"disk.img"}),
        ("disk.img", 20_000, {"disk.img"}),
        ("disk.img", 16 * MIB - 200, {"partition table"}),
    ],
)
def test_every_file_of_a_build_counts(file: str, offset: int, rows: set[str], made: Made) -> None:
    made.flip(file, offset)
    assert rows <= set(failed(verify_path(made.out, KEY)))


@pytest.mark.parametrize(
    ("offset", "row", "message"),
    [
        (at("boot_a", 3000), "boot_a: FIT", "does not match"),
        (at("boot_b", 3000), "boot_b: FIT", "does not match"),
        (at("system_a", 0), "system_a: tree", "1 bad data block(s): 0"),
        (at("system_b", 100_000), "system_b: tree", "1 bad data block(s): 24"),
        (at("misc", 0), "disk.img", ""),
        (512 + 60, "partition table", "differ"),
    ],
)
def test_every_place_of_a_device_counts(offset: int, row: str, message: str, made: Made) -> None:
    made.flip("disk.img", offset)
    found = failed(verify_path(made.out / "disk.img", KEY))
    if row == "disk.img":  # one of the two copies of the state may be wrong
        assert not found
    else:
        assert message in found[row]


def test_the_files_that_are_hit_are_named(made: Made) -> None:
    made.flip("system.img", 100_000)
    verdict = verify_path(made.out, KEY)
    (row,) = [c for c in verdict.failed if c.what == "system.img: tree"]
    assert "24" in str(row.error) and row.hint == "files hit: /usr/bin/tool"


def test_another_key_vouches_for_nothing(made: Made) -> None:
    found = failed(verify_path(made.out, OTHER))
    for what in (
        "release.json",
        "sign.pub.pem, sign.crt",
        ROOT_HASH_SIGNATURE,
        VERITY_SIGNATURE,
        "boot_a: FIT",
        "boot_b: FIT",
    ):
        assert what in found
    assert set(failed(verify_path(made.out / "disk.img", OTHER))) >= {
        "boot_a: FIT",
        "boot_b: FIT",
        "system_a",
        "system_b",
    }


@pytest.mark.parametrize(
    "name", [RELEASE_SIGNATURE, ROOT_HASH_SIGNATURE, VERITY_SIGNATURE, "sign.crt", "disk.img", "system.img"]
)
def test_what_is_missing_fails(name: str, made: Made) -> None:
    (made.out / name).unlink()
    assert not verify_path(made.out, KEY).ok


def test_a_missing_file_is_told_once(made: Made) -> None:
    """Not as if the disk image could not be read, whose partitions are looked for among all files."""
    (made.out / "bom.json").write_bytes(b"x" * 5000)
    made.seal()
    (made.out / "bom.json").unlink()
    assert list(failed(verify_path(made.out, KEY))) == ["bom.json"]


def test_an_unsigned_fit_fails(made: Made) -> None:
    unsigned = make_fit({**init_values((made.out / "boot.fit").read_bytes())}, None)
    with (made.out / "disk.img").open("r+b") as disk:
        disk.seek(at("boot_a"))
        disk.write(unsigned)
    assert "not signed" in failed(verify_path(made.out / "disk.img", KEY))["boot_a: FIT"]
    (made.out / "boot.fit").write_bytes(unsigned)
    assert "not signed" in failed(verify_path(made.out / "boot.fit", KEY))["boot.fit: FIT"]


def test_an_unsigned_partition_fails(made: Made) -> None:
    made.flip("disk.img", at("system_b", 0))
    with (made.out / "disk.img").open("r+b") as disk:
        disk.seek(at("boot_b"))
        disk.write(bytes(100))
    found = failed(verify_path(made.out / "disk.img", KEY))
    assert found["boot_b"] == found["system_b"] == "no signature covers this partition"


def test_what_is_older_than_the_minimum_fails(made: Made) -> None:
    with (made.out / "disk.img").open("r+b") as disk:
        for minimum, passes in ((0, True), (1, False)):
            for offset in rollback.OFFSETS:
                disk.seek(at("misc", offset))
                disk.write(rollback.encode(minimum))
            disk.flush()
            verdict = verify_path(made.out / "disk.img", KEY)
            assert verdict.ok is passes, failed(verdict)
    assert set(failed(verdict)) == {"boot_a: version", "boot_b: version"}


def test_systems_of_two_builds_do_not_mix(made: Made, tmp_path: Path) -> None:
    """Both properly signed: the older system under the newer FIT."""
    older = tmp_path / "older.img"
    older.write_bytes((made.out / "system.img").read_bytes()[: made.verity.hash_offset].replace(b"ID=edge", b"ID=oldy"))
    append(older)
    with (made.out / "disk.img").open("r+b") as disk:
        disk.seek(at("system_a"))
        disk.write(older.read_bytes())
    assert "does not match root hash" in failed(verify_path(made.out / "disk.img", KEY))["system_a: tree"]


def test_a_record_of_another_build_does_not_help(made: Made) -> None:
    record = json.loads((made.out / "release.json").read_text())
    record["system"]["root_hash"] = "00" * 32
    (made.out / "release.json").write_text(json.dumps(record))
    made.seal()
    assert "system.img: tree" in failed(verify_path(made.out, KEY))
    for spoiled in (
        {**record, "system": {}},
        {**record, "files": 5},
        {**record, "system": {**record["system"], "salt": "x"}},
    ):
        (made.out / "release.json").write_text(json.dumps(spoiled))
        assert not verify_path(made.out, KEY).ok


def test_a_system_image_alone(made: Made, tmp_path: Path) -> None:
    image = tmp_path / "alone.img"
    shutil.copy(made.out / "system.img", image)
    assert "not signed" in failed(verify_path(image, KEY))["alone.img: root hash"]
    for name in (ROOT_HASH_SIGNATURE, VERITY_SIGNATURE):
        assert verify_path(image, KEY, signature=made.out / name).ok
        assert not verify_path(image, OTHER, signature=made.out / name).ok
    more = tmp_path / "more.img"
    for behind in (bytes(3 * 4096), b"parity" * 4096):  # the rest of a partition; what builds put behind the tree
        more.write_bytes(image.read_bytes() + behind)
        assert verify_path(more, KEY, signature=made.out / ROOT_HASH_SIGNATURE).ok
    with image.open("r+b") as file:
        file.write(b"x")
    assert not verify_path(image, KEY, signature=made.out / ROOT_HASH_SIGNATURE).ok
    found = failed(verify_path(image, KEY, signature=made.out / VERITY_SIGNATURE))
    assert "1 bad data block(s): 0" in found["alone.img: tree"]
    for noise in (b"noise" * 5000, b"few", b""):
        (tmp_path / "noise").write_bytes(noise)
        assert "nothing here" in failed(verify_path(tmp_path / "noise", KEY))["noise: root hash"]


def test_a_record_alone(made: Made) -> None:
    assert verify_path(made.out / "release.json", KEY).ok
    made.flip("release.json", 30, 1)
    assert not verify_path(made.out / "release.json", KEY).ok


def test_a_partition_with_avb_footer(made: Made, tmp_path: Path) -> None:
    image = tmp_path / "system.img"
    image.write_bytes((made.out / "system.img").read_bytes()[: made.verity.hash_offset])
    tree = add_hashtree_footer(image, "system", 4 * MIB, KEY)
    verdict = verify_path(image, KEY)
    assert verdict.ok, failed(verdict)
    assert {c.digest for c in verdict.checks if c.what == "system: tree"} == {tree.root_digest.hex()}
    assert not verify_path(image, OTHER).ok
    with image.open("r+b") as file:
        file.seek(5000)
        file.write(b"!!")
    assert "1 bad data block(s): 1" in failed(verify_path(image, KEY))["system: tree"]


def test_a_disk_with_vbmeta_and_chains(made: Made, tmp_path: Path) -> None:
    system, boot = tmp_path / "system", tmp_path / "boot"
    boot.write_bytes(b"boot" * 1000)
    system.write_bytes((made.out / "system.img").read_bytes()[: made.verity.hash_offset])
    add_hashtree_footer(system, "system", 4 * MIB, OTHER)
    places = {"vbmeta_a": (1, 1), "boot_a": (2, 1), "system_a": (3, 4)}
    descriptors: list[Descriptor] = [
        hash_descriptor(boot, "boot"), Chain("system", 1, encode_key(OTHER.public_key, "o")),  # type: ignore[arg-type]
    ]  # fmt: skip
    vbmeta = tmp_path / "vbmeta"
    vbmeta.write_bytes(write_vbmeta(VBMeta(descriptors), KEY))
    table = gpt.Table(
        gpt.guid_from(b"v", ""), 8 * MIB // 512,
        tuple(
            gpt.Partition(n, gpt.TYPE_LINUX, gpt.guid_from(b"v", n), s * 2048, (s + size) * 2048 - 1)
            for n, (s, size) in places.items()
        ),
    )  # fmt: skip
    head, tail = gpt.encode(table)
    disk = bytearray(head.ljust(8 * MIB - len(tail), b"\0") + tail)
    for name, file in {"vbmeta_a": vbmeta, "system_a": system, "boot_a": boot}.items():
        start = places[name][0] * MIB
        disk[start : start + file.stat().st_size] = file.read_bytes()
    path = tmp_path / "disk.img"
    path.write_bytes(disk)
    verdict = verify_path(path, KEY)
    assert verdict.ok, failed(verdict)
    assert {"vbmeta_a: vbmeta", "boot_a: digest", "system_a: chain", "system_a: vbmeta", "system_a: tree"} <= {
        c.what for c in verdict.checks
    }
    for place, row in (
        (MIB + 600, "vbmeta_a: vbmeta"),
        (2 * MIB + 3000, "boot_a: digest"),
        (3 * MIB, "system_a: tree"),
    ):
        changed = bytearray(disk)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert row in failed(verify_path(path, KEY))


def test_the_command(made: Made, tmp_path: Path) -> None:
    public = tmp_path / "product.pub.pem"
    public.write_bytes(public_key_pem(KEY))
    runner = CliRunner()
    done = runner.invoke(cli, ["verify", str(made.out), "--key", str(public)])
    assert done.exit_code == 0 and "system.img: tree" in done.stdout and made.verity.root_hash.hex()[:32] in done.stdout
    record = json.loads(runner.invoke(cli, ["verify", str(made.out), "--key", str(public), "--json"]).stdout)
    assert record["ok"] and record["key"]["type"] == "rsa2048"
    assert all(set(c) == {"what", "against", "digest", "ok", "error", "hint"} for c in record["checks"])
    made.flip("system.img", 100_000)
    done = runner.invoke(cli, ["verify", str(made.out), "--key", str(public)])
    assert done.exit_code == 4 and "FAILED" in done.stdout and "checks failed" in done.stderr
    record = json.loads(runner.invoke(cli, ["verify", str(made.out), "--key", str(public), "--json"]).stdout)
    assert not record["ok"]
    assert runner.invoke(cli, ["verify", str(made.out)]).exit_code == 2
    certificate = runner.invoke(cli, ["verify", str(made.out / "disk.img"), "--key", str(made.out / "sign.crt")])
    assert certificate.exit_code == 0, certificate.output


def test_the_stock_build(stock: Callable[[str], Path]) -> None:
    out = stock("qemu-aarch64")
    key = out / "sign.pub.pem"
    done = CliRunner().invoke(cli, ["verify", str(out), "--key", str(key), "--json"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("config", [b"X", b"A='1'\nA='2'\n", b"A=1", b"\xff\xfe=''"])
def test_hostile_values_are_format_errors(config: bytes) -> None:
    with pytest.raises(FormatError):
        init_values(make_fit({}, None, config))


def test_values_that_make_no_sense_fail(made: Made) -> None:
    good = init_values((made.out / "boot.fit").read_bytes())
    changes: list[dict[str, object]] = [
        {"DATA_BLOCKS": "x"},
        {"DATA_BLOCKS": "0"},
        {"BLOCK_SIZE": "3"},
        {"ROOT_HASH": "ab"},
        {"SALT": "zz"},
        {"HASH_START": "0"},
        {"DATA_BLOCKS": "99999999", "HASH_START": "999999999"},
        {"SYSTEM": "gone"},
    ]
    for change in changes:
        fit = make_fit({**good, **change}, KEY)
        with (made.out / "disk.img").open("r+b") as disk:
            disk.seek(at("boot_a"))
            disk.write(fit)
        assert not verify_path(made.out / "disk.img", KEY).ok, change


@pytest.mark.parametrize("name", ["", "disk.img", "boot.fit"])
def test_a_signature_that_nothing_would_look_at_is_refused(made: Made, name: str) -> None:
    """It was passed over, and the verdict was good whatever the file was."""
    other = made.out.parent / "other.p7s"
    other.write_bytes(b"no signature")
    with pytest.raises(UsageError, match="has its signatures inside") as caught:
        verify_path(made.out / name, KEY, signature=other)
    assert caught.value.where == str(other)
    assert verify_path(made.out / name, KEY).ok


def test_a_record_by_a_signature_that_is_elsewhere(made: Made) -> None:
    record, kept = made.out / "release.json", made.out.parent / "kept.p7s"
    (made.out / "release.json.p7s").rename(kept)
    assert verify_path(record, KEY, signature=kept).ok and not verify_path(record, KEY).ok
    kept.rename(made.out / "release.json.p7s")
    kept.write_bytes(b"no signature")
    assert not verify_path(record, KEY, signature=kept).ok, "the one that lies beside it was not asked for"
