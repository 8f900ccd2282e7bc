# SPDX-License-Identifier: Apache-2.0
"""The workflow that users copy: it is YAML, and each of its commands is one that we have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
from ruamel.yaml import YAML

from erofs_edge.cli.main import cli
from erofs_edge.cli.release_check import release_check


def test_its_commands_exist(repository: Path) -> None:
    flow = YAML(typ="safe").load((repository / "docs/workflows/release.yml").read_text())
    lines = [line for step in flow["jobs"]["release"]["steps"] for line in step.get("run", "").splitlines()]
    ours = [line for line in lines if line.startswith("erofs-edge ")]
    assert len(ours) == 6
    for line in ours:
        words = shlex.split(re.sub(r" > \S+$", "", line))[1:]
        command: click.Command = cli
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, line
            command, words = found, words[1:]
        known = {name for one in (command, release_check) for parameter in one.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line
