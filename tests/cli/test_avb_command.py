# SPDX-License-Identifier: Apache-2.0
"""The `avb` command: make, show, verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.cli.main import cli
from erofs_edge.erofs import build


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_footer_vbmeta_info_and_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))
    run("keys", "new", "product")
    key, public = f"file:{tmp_path / 'keys/product.pem'}", tmp_path / "keys/product.pub"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"content" * 2000)
    image, vbmeta = tmp_path / "system.img", tmp_path / "vbmeta.img"
    build(tmp_path / "tree", image)
    footer = ["avb", "add-hashtree-footer", "--image", image, "--partition-name", "system", "--key", key]
    made = json.loads(
        run(*footer, "--partition-size", 1 << 20, "--rollback-index", 3, "--prop", "os:1", "--json").stdout
    )
    run("verify", image, "--key", public)
    info = json.loads(run("avb", "info-image", "--image", image, "--json").stdout)
    assert info["rollback_index"] == 3
    assert [d["kind"] for d in info["descriptors"]] == ["hashtree", "property"]
    assert info["descriptors"][0]["root_digest"] == made["root_digest"]
    (tmp_path / "boot").write_bytes(b"boot" * 100)
    run(
        "avb", "make-vbmeta-image", "--output", vbmeta, "--key", key, "--chain-partition", f"vendor:1:{public}",
        "--hash-image", f"boot:{tmp_path / 'boot'}", "--include-descriptors-from-image", image,
    )  # fmt: skip
    shown = run("avb", "info-image", "--image", vbmeta).stdout
    assert all(word in shown for word in ("Chain:", "Hash:", "Hashtree:", "Property:", made["root_digest"]))
    run(*footer, "--partition-size", 4096, code=1)
    run(*footer, "--partition-size", 1 << 20, "--salt", "xy", code=2)
    run(*footer, "--partition-size", 1 << 20, "--prop", "novalue", code=2)
    run("avb", "make-vbmeta-image", "--output", vbmeta, "--key", key, "--chain-partition", "a:b", code=2)
    run("avb", "info-image", "--image", tmp_path / "boot", code=1)
