# SPDX-License-Identifier: Apache-2.0
"""The workflow that users copy: YAML whose commands get as far as the files that only a real release has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from ruamel.yaml import YAML

from erofs_edge.cli.main import cli

COMMANDS = {"tools fetch", "release", "release --check", "channel add", "channel publish", "rebuild"}


def commands(repository: Path) -> list[str]:
    flow = YAML(typ="safe").load((repository / "docs/workflows/release.yml").read_text())
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    lines = {line.strip() for step in steps for line in step.get("run", "").splitlines()}
    return sorted(line for line in lines if line.startswith("erofs-edge "))


def test_its_commands_are_accepted(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No usage error (exit code 2): all that is missing is a release that was made before."""
    monkeypatch.chdir(tmp_path)
    key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "release-key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for folder in ("keys", "out/release", "channel"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "keys/release.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    seen = set()
    for line in commands(repository):
        named = line.replace("$BOARD", "boards/product.yaml").replace("$OUT", "out/release")
        words = shlex.split(re.sub(r" > \S+$", "", named))[1:]
        seen |= {name for name in COMMANDS if words[: len(name.split())] == name.split()}
        if words == ["tools", "fetch"]:
            continue
        result = CliRunner().invoke(cli, words)
        assert result.exit_code not in (0, 2), f"{line}: {result.output}"
        assert re.search("no such file|nothing has been built|no channel here", result.output), result.output
    assert seen == COMMANDS
