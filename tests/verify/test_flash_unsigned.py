# SPDX-License-Identifier: Apache-2.0
"""`flash` without `--key`: what nobody signed, or what was changed since, is refused before anything is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fixed_key import fixed_key
from made_build import MIB, PLACES, Made, make_build, make_fit

from erofs_edge.boot.contents import init_values
from erofs_edge.cli.main import cli
from erofs_edge.trust.key import KeySigner
from erofs_edge.verity.superblock import Superblock

KEY = fixed_key(1, "product")
OTHER = fixed_key(2, "product")
BEFORE = bytes(2048) + b"what was there" * 1000  # a blank start: it may be written


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_build(tmp_path_factory.mktemp("made") / "out", KEY)


@pytest.fixture
def made(template: Made, tmp_path: Path) -> Made:
    shutil.copytree(template.out, tmp_path / "out")
    return Made(tmp_path / "out", KEY, template.verity)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "card.img"
    path.write_bytes(BEFORE)
    return path


def flash(what: Path, card: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["flash", str(what), "--to", str(card), *options])


def put(made: Made, partition: str, data: bytes) -> None:
    with (made.out / "disk.img").open("r+b") as file:
        file.seek(PLACES[partition][0] * MIB)
        file.write(data)


def fit(made: Made, signer: KeySigner | None, **values: str) -> bytes:
    named: dict[str, object] = {**init_values((made.out / "boot.fit").read_bytes()), **values}
    made_of: bytes = make_fit(named, signer)
    return made_of


def top_of_tree(made: Made) -> int:
    info = made.verity
    sb = Superblock(bytes(16), info.salt, info.data_blocks, "sha256", 4096, 4096)
    start: int = PLACES["system_b"][0] * MIB
    return start + sb.levels_from(info.hash_start_block)[-1].start * 4096


def record(made: Made, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    path = made.out / "release.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


BAD: dict[str, tuple[Callable[[Made], object], str]] = {
    "a kernel that was changed": (
        lambda made: made.flip("disk.img", PLACES["boot_a"][0] * MIB + 3000), "boot_a: FIT"
    ),
    "in the second slot": (lambda made: made.flip("disk.img", PLACES["boot_b"][0] * MIB + 3000), "boot_b: FIT"),
    "another key": (lambda made: put(made, "boot_a", fit(made, OTHER)), "the signature does not match"),
    "nobody": (lambda made: put(made, "boot_a", fit(made, None)), "the FIT is not signed"),
    "another build's boot image": (
        lambda made: put(made, "boot_a", fit(made, KEY, ROOT_HASH="00" * 32)), "names another root hash"
    ),
    "another system": (lambda made: made.flip("disk.img", top_of_tree(made)), "system_b is not the system"),
    "a record that was changed": (
        lambda made: record(made, lambda value: value["sign"].update(name="x")), "release.json: the signature"
    ),
    "a record that nobody signed": (lambda made: (made.out / "release.json.p7s").unlink(), "is not signed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_signed_by(name: str, made: Made, card: Path) -> None:
    damage, said = BAD[name]
    damage(made)
    result = flash(made.out, card)
    assert (result.exit_code, said in result.stderr) == (4, True), result.stderr
    assert "not flashed" in result.stderr
    assert card.read_bytes() == BEFORE
    # asking for it does not help on a board whose key is a real one
    result = flash(made.out, card, "--allow-unsigned")
    assert (result.exit_code, "development key" in result.stderr) == (2, True), result.stderr
    assert card.read_bytes() == BEFORE
    assert flash(made.out, card, "--plan").exit_code == 0, "looking is free"


def test_what_is_signed(made: Made, card: Path) -> None:
    assert flash(made.out, card).exit_code == 0
    assert card.read_bytes() == (made.out / "disk.img").read_bytes()


def test_a_development_board(made: Made, card: Path, repository: Path) -> None:
    put(made, "boot_b", fit(made, None))
    record(made, lambda value: value["sign"].update(development=True))
    result = flash(made.out, card, "--allow-unsigned")
    assert result.exit_code == 0, result.stderr
    assert "warning: not flashed" not in result.stderr and "warning:" in result.stderr
    assert card.read_bytes() == (made.out / "disk.img").read_bytes()
    # the board file says it as well
    record(made, lambda value: value["sign"].update(development=False))
    board = repository / "boards/qemu-aarch64.yaml"
    assert flash(board, card, "-o", str(made.out)).exit_code == 4
    assert flash(board, card, "-o", str(made.out), "--allow-unsigned").exit_code == 0


def test_an_image_alone(made: Made, tmp_path: Path, card: Path) -> None:
    """Without a build there is no key: a FIT must be signed by somebody, whoever it is."""
    alone = tmp_path / "alone.img"
    shutil.copy(made.out / "disk.img", alone)
    assert flash(alone, card).exit_code == 0
    put(made, "boot_b", fit(made, None))
    shutil.copy(made.out / "disk.img", alone)
    before = card.read_bytes()
    result = flash(alone, card, "--whole")
    assert (result.exit_code, "partition boot_b is not signed" in result.stderr) == (4, True), result.stderr
    assert flash(alone, card, "--allow-unsigned").exit_code == 2
    assert card.read_bytes() == before


def test_what_is_no_disk(tmp_path: Path, card: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"anything" * 1000)
    assert flash(raw, card).exit_code == 0
    assert card.read_bytes()[:8000] == raw.read_bytes()


def test_an_image_that_is_no_disk_starts_no_process(tmp_path: Path) -> None:
    """And loads nothing for signatures, deltas or digests where it is there already: half the time of a small one."""
    for name in ("image", "target"):
        (tmp_path / name).write_bytes(b"no table" * 100_000)
    code = (
        "import atexit, os, sys\n"
        "os.fork = lambda: os._exit(99)\n"
        "sys.argv = ['erofs-edge', 'flash', '--image', 'image', '--to', 'target', '--json']\n"
        "atexit.register(lambda: print(' '.join(sys.modules), file=sys.stderr))\n"
        "from erofs_edge.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["bytes_written"] == 0
    loaded = set(done.stderr.splitlines()[-1].split())
    needless = {
        "hashlib",
        "ctypes",
        "dataclasses",
        "difflib",
        "inspect",
        "mmap",
        "pickle",
        "select",
        "subprocess",
        "concurrent.futures",
        "erofs_edge.build.beside",
        "erofs_edge.flash.copies",
        "erofs_edge.flash.delta",
    }
    assert "erofs_edge.flash.execute" in loaded and not loaded & needless


def test_a_look_for_a_signature_loads_nothing_that_makes_one(tmp_path: Path) -> None:
    """It goes on beside the comparison of what is already right, which has both processors to itself otherwise."""
    (tmp_path / "disk").write_bytes(b"\xd0\x0d\xfe\xed" + (4096).to_bytes(4, "big") + bytes(4088))
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from erofs_edge.cli.flash_signed import load_dataclasses\n"
        "from erofs_edge.disk import gpt\n"
        "from erofs_edge.verify.unsigned import check_alone\n"
        "load_dataclasses()\n"
        "table = gpt.Table(bytes(16), 16, (gpt.Partition('boot', gpt.TYPE_LINUX, bytes(16), 0, 7),))\n"
        "check_alone(os.open('disk', os.O_RDONLY), table, Path('disk'))\n"
        "print(' '.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "erofs_edge.boot.fdt" in loaded
    assert "dataclasses" in loaded
    assert not loaded & {"erofs_edge.boot.fit", "erofs_edge.trust.key", "hashlib", "inspect"}
