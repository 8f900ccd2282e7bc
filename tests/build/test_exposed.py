# SPDX-License-Identifier: Apache-2.0
"""A release lists where somebody with physical access to the medium could add programs that start."""

from __future__ import annotations

from pathlib import Path

import pytest

from erofs_edge.build.exposed import exposed_notes
from erofs_edge.manifest.load import load_board, load_system


@pytest.mark.parametrize(
    ("etc", "data", "said"),
    [
        ("[]", "filesystem: ext4", "/etc can be changed on the partition 'data'"),
        ("[/etc/machine-id, /etc/systemd/network]", "filesystem: ext4", "/etc/systemd/network can be"),
        ("[/etc/systemd, /etc/pam.d/login]", "filesystem: ext4", "/etc/systemd, /etc/pam.d/login can be"),
        ("[/etc/machine-id, /etc/ssh]", "filesystem: ext4", ""),
        ("[]", "filesystem: ext4, encrypt: {key: tpm2}", ""),
    ],
)
def test_notes(etc: str, data: str, said: str, repository: Path, tmp_path: Path) -> None:
    system, board = tmp_path / "mine.yaml", tmp_path / "board.yaml"
    system.write_text(f"system: mine\nextends: {repository / 'manifests/edge-minimal.yaml'}\nwritable_etc: {etc}\n")
    board.write_text(
        f"board: mine\nextends: {repository / 'boards/qemu-aarch64.yaml'}\n"
        f"disk:\n  partitions:\n    data: {{size: rest, {data}}}\n"
    )
    notes = exposed_notes(load_board(board).value, load_system(system).value)
    assert len(notes) == bool(said) and all(said in note for note in notes)


def test_a_board_that_keeps_nothing_has_nothing_to_lose(repository: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.yaml"
    board.write_text(
        f"board: mine\nextends: {repository / 'boards/qemu-aarch64.yaml'}\ndisk:\n  partitions:\n    data: null\n"
    )
    system = load_system(repository / "manifests/edge-minimal.yaml").value
    assert exposed_notes(load_board(board).value, system) == []
