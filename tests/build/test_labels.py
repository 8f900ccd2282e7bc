# SPDX-License-Identifier: Apache-2.0
"""`selinux.file_contexts` of a manifest: labels in the image, and their effect on the digest of the build."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from erofs_edge.build import stages
from erofs_edge.build.inputs import Inputs, Locked, digest, gather
from erofs_edge.build.stages import Bench, Debs, make_system, quiet
from erofs_edge.erofs.read import Image
from erofs_edge.errors import SourceError
from erofs_edge.manifest.load import load_system
from erofs_edge.sources.cache import Cache
from erofs_edge.tree import FileTree, Inode
from erofs_edge.trust.signer import open_signer

MANIFEST = """\
system: m
selinux: {file_contexts: contexts/fc}
entries:
  - {path: /etc/x, type: file, text: "x"}
"""


@pytest.fixture
def inputs(repository: Path, tmp_path: Path) -> Inputs:
    made = gather(repository / "boards/qemu-aarch64.yaml")
    (tmp_path / "contexts").mkdir()
    (tmp_path / "contexts/fc").write_text("/.* u:r:all\n/usr/lib/modules(/.*)? u:r:modules\n")
    (tmp_path / "m.yaml").write_text(MANIFEST)
    lock = replace(made.system.lock, packages={"system": []})
    return Inputs(made.board, made.lock, made.partition, Locked(load_system(tmp_path / "m.yaml"), lock))


def system_of(inputs: Inputs, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes | None]:
    modules = FileTree()
    modules.add("/usr/lib/modules/6.12/m.ko", Inode(0o100644))
    monkeypatch.setattr(stages, "system_modules", lambda *args, **kwargs: modules)
    monkeypatch.setattr(stages, "kernel_of", lambda *args: SimpleNamespace(tree=FileTree()))
    bench = Bench(folder, Cache(folder / "cache"), open_signer("dev:dev"), quiet, jobs=1, compression_cache=False)
    made = make_system(inputs, Debs({}, folder, {}, {}), bench)
    with Image(made.path) as image:
        return {path: inode.xattrs.get(b"security.selinux") for path, inode in image.tree().walk()}


def test_everything_has_its_label(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = system_of(inputs, tmp_path, monkeypatch)
    assert labels[b"/"] == labels[b"/etc/x"] == b"u:r:all"
    assert labels[b"/usr/lib/modules/6.12/m.ko"] == labels[b"/usr/lib/modules"] == b"u:r:modules"


def test_a_bad_line_is_named(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "contexts/fc").write_text("/.* u:r:all\n/( u:r:bad\n")
    with pytest.raises(SourceError, match="bad regular expression") as caught:
        system_of(inputs, tmp_path, monkeypatch)
    assert caught.value.where == f"{tmp_path}/contexts/fc:2"


def test_the_file_is_part_of_the_digest(inputs: Inputs, tmp_path: Path) -> None:
    before = digest(inputs, b"key")
    (tmp_path / "contexts/fc").write_text("/.* u:r:other\n")
    assert digest(inputs, b"key") != before
