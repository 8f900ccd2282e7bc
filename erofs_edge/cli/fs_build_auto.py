# SPDX-License-Identifier: Apache-2.0
"""`fs build -z auto`: choose the compression, and explain the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from erofs_edge.erofs.auto import Candidate, Choice
    from erofs_edge.erofs.options import WriteOptions
    from erofs_edge.tree import FileTree


def choose_automatically(
    tree: FileTree, options: WriteOptions, output: Path, budget: float | None, *, pcluster: str | None
) -> Choice:
    """Choose the smallest result within the time budget; samples are written beside the output."""
    from erofs_edge.erofs.auto import BUDGET, choose
    from erofs_edge.writing import folder_beside

    with folder_beside(output) as folder:
        return choose(
            tree,
            options,
            folder / "sample",
            budget=BUDGET if budget is None else budget,
            pcluster=options.pcluster if pcluster is not None else None,
        )


def choice_record(choice: Choice) -> dict[str, Any]:
    """Return the record for --json: seconds and bytes are estimates."""
    from dataclasses import asdict

    return {
        "budget": choice.budget,
        "sample": choice.sample,
        "chosen": asdict(choice.chosen),
        "candidates": [asdict(candidate) for candidate in choice.candidates],
    }


def choice_rows(choice: Choice) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return (rows, header) of a table."""
    rows: list[tuple[str, ...]] = [
        (
            _name(candidate),
            candidate.packing or "-",
            f"{candidate.seconds:.1f}",
            "-" if candidate.bytes is None else f"{candidate.bytes / 1e6:.1f}",
            candidate.why,
        )
        for candidate in choice.candidates
    ]
    return rows, ("candidate", "packing", "s", "MB", "")


def _name(candidate: Candidate) -> str:
    level = "" if candidate.level is None else f",{candidate.level}"
    return f"{candidate.compression}{level} -C {candidate.pcluster}"
