# SPDX-License-Identifier: Apache-2.0
"""Products outside this repository, stock boards and manifests by name; from a wheel: tests/packaging."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result
from killed import kills_leave_nothing
from ruamel.yaml import YAML

from erofs_edge.build.inputs import gather
from erofs_edge.cli.main import cli
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import load_any, load_board, load_lock, load_system
from erofs_edge.manifest.stock import stock_folder, stock_names


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.parametrize("board", stock_names("boards"))
@pytest.mark.parametrize("system", [None, *stock_names("manifests")])
def test_a_product_can_be_built_at_once(here: Path, board: str, system: str | None) -> None:
    args = ["new", "my-gateway", "--board", board, "--json", *(["--system", system] if system else [])]
    record = json.loads(run(*args).stdout)
    assert record["board"] == "my-gateway/boards/my-gateway.yaml"
    assert (
        sorted(p.relative_to(here / "my-gateway").as_posix() for p in here.rglob("*") if p.is_file()) == record["files"]
    )
    inputs = gather(Path("my-gateway/boards/my-gateway.yaml"))
    assert (inputs.board.value.board, inputs.system.loaded.value.system) == ("my-gateway", "my-gateway-system")
    assert inputs.system.loaded.value.hostname == "my-gateway"
    assert inputs.board.value.sign.key == "dev:my-gateway"
    below = load_system(system).value if system else load_system(stock_system(board)).value
    assert inputs.system.loaded.value.packages == below.packages
    assert inputs.system.loaded.value.overlay[:-1] == below.overlay
    assert (inputs.lock.name, inputs.system.lock.name) == ("my-gateway", "my-gateway-system")


def stock_system(board: str) -> Path:
    contents = [p.content for p in load_board(board).value.disk.partitions.values()]
    return next(Path(content) for content in contents if content and content.endswith(".yaml"))


def test_its_files_fit_their_schemas(here: Path) -> None:
    assert run("new", "shop/till", "--board", "rpi4").exit_code == 0
    for kind, name in (("board", "boards/till"), ("manifest", "manifests/till-system")):
        schema = json.loads((here / f"shop/till/schema/{kind}.schema.json").read_text())
        text = (here / f"shop/till/{name}.yaml").read_text()
        jsonschema.validate(YAML(typ="safe").load(text), schema)
        assert f"../schema/{kind}.schema.json" in text
    assert "erofs-edge build till" in (here / "shop/till/README.md").read_text()
    assert "--smoke" not in (here / "shop/till/README.md").read_text(), "QEMU has no such board"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["x", "--board", "rpi5"], "no stock board 'rpi5'\nhint: there are generic-uefi-arm64, "),
        (["x", "--board", "rpi4", "--system", "none"], "no stock manifest 'none'"),
        (["X!", "--board", "rpi4"], "not a valid name for a product: 'X!'"),
        (["rpi4", "--board", "rpi4"], "rpi4 is the name of a stock board or system"),
        (["full", "--board", "rpi4"], "full: this already exists"),
        (["full/file/x", "--board", "rpi4"], "full/file: this is a file, not a folder"),
        (["x"], "Missing option '--board'"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(here: Path, args: list[str], message: str) -> None:
    (here / "full").mkdir()
    (here / "full/file").write_text("")
    done = run("new", *args)
    assert done.exit_code == 2 and message in done.stderr
    assert [path.name for path in here.rglob("*")] == ["full", "file"]


def test_names_in_commands(here: Path) -> None:
    assert load_any("rpi4").value == load_board("rpi4").value
    assert load_any("edge-base").value == load_system("edge-base").value
    assert run("explain", "rpi4").exit_code == 0
    # a board in the working directory takes precedence over a stock one
    (here / "boards").mkdir()
    (here / "boards/rpi4.yaml").write_text("extends: qemu-aarch64\nboard: mine\n")
    assert load_board("rpi4").value.board == "mine"
    # and a file of that name over both
    (here / "rpi4").write_text("extends: qemu-aarch64\nboard: nearest\n")
    assert load_board("rpi4").value.board == "nearest"
    with pytest.raises(ManifestError, match="no-such-board"):
        load_board("no-such-board")


def test_extends_a_name_that_is_none(here: Path) -> None:
    (here / "b.yaml").write_text("extends: rpi9\nboard: b\n")
    with pytest.raises(ManifestError, match=r"b\.yaml:1:10: extends .*rpi9, which is not there") as caught:
        load_board(here / "b.yaml")
    assert "stock boards: generic-uefi-arm64, " in (caught.value.hint or "")


def test_content_may_be_a_stock_manifest(here: Path) -> None:
    text = "extends: rpi4\nboard: b\ndisk: {partitions: {system: {content: edge-base}}}\n"
    (here / "b.yaml").write_text(text)
    assert load_board(here / "b.yaml").value == load_board(here / "b.yaml").value
    assert load_board(here / "b.yaml").value.disk.partitions["system"].content == str(
        stock_folder() / "manifests/edge-base.yaml"
    )


def test_the_digest_does_not_know_where_the_package_is(
    here: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    assert run("new", "p", "--board", "rpi4").exit_code == 0
    files = [here / "p/boards/p.yaml", here / "p/manifests/p-system.yaml"]
    before = [load_any(path).digest for path in files]
    for folder in ("boards", "manifests"):
        shutil.copytree(repository / folder, here / "elsewhere" / folder)
    monkeypatch.setattr("erofs_edge.manifest.stock.SHIPPED", here / "elsewhere")
    assert str(load_any(files[0]).files[1]).startswith(str(here))
    assert [load_any(path).digest for path in files] == before


def test_another_system_for_a_board(here: Path, repository: Path) -> None:
    base = gather(repository / "boards/qemu-aarch64.yaml")
    assert run("new", "p", "--board", "qemu-aarch64").exit_code == 0
    swapped = gather(repository / "boards/qemu-aarch64.yaml", None, here / "p/manifests/p-system.yaml")
    assert swapped.board.value == base.board.value
    assert swapped.system.loaded.value.system == "p-system"
    (here / "riscv.yaml").write_text("extends: edge-base\nsystem: edge-base\narch: riscv64\n")
    lock = load_lock(stock_folder() / "manifests/edge-base.lock")
    assert lock.arch == "arm64"
    with pytest.raises(ManifestError, match="the system is for riscv64, the board for arm64"):
        gather(repository / "boards/qemu-aarch64.yaml", None, here / "riscv.yaml")
    done = run("build", "qemu-aarch64", "--system", "nothing-of-the-kind", "-o", str(here / "out"))
    assert done.exit_code == 3 and "nothing-of-the-kind" in done.stderr


def test_kills_leave_nothing(here: Path) -> None:
    words = ("new", "shop", "--board", "rpi4")
    kills_leave_nothing(here, *words, before=lambda: shutil.rmtree("shop", ignore_errors=True))
