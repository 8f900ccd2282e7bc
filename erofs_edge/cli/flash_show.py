# SPDX-License-Identifier: Apache-2.0
"""The output of `flash`: the plan before, the result after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erofs_edge.cli.output import emit_json, note, size_text, table

if TYPE_CHECKING:
    from erofs_edge.disk.gpt_copies import Mend
    from erofs_edge.flash.estimate import Estimate
    from erofs_edge.flash.execute import RegionResult
    from erofs_edge.flash.prepare import Prepared
    from erofs_edge.flash.target import Identity

DAMAGED = {
    "first": "the first partition table is damaged, and the second one is used",
    "second": "the second partition table is damaged",
    "mbr": "the protective MBR is damaged",
}


def device_text(identity: Identity) -> str:
    """Describe a target for people: path, model, serial number, size."""
    facts = [identity.model, identity.serial, size_text(identity.size), "removable" if identity.removable else "fixed"]
    if identity.kind == "file":
        facts = [f"file, {size_text(identity.size)}" if identity.size else "new file"]
    return f"{identity.path} ({', '.join(filter(None, facts))})"


def note_table(mend: Mend | None) -> None:
    """Warn if a copy of the table that the target keeps is damaged."""
    if mend is None:
        return
    remedy = "writing a slot, or --repair, mends it"
    if not mend.writes:
        remedy = "it cannot be mended safely; flash --whole writes both anew, and empties the data partition"
    note(f"warning: {DAMAGED[mend.damaged]}: {remedy}")


def show_plan(prepared: Prepared, identity: Identity, cost: Estimate | None, *, as_json: bool) -> None:
    """Print what would be written where."""
    plan, todo, mend = prepared.plan, prepared.todo, prepared.plan.mend
    written = plan.mended_bytes + sum(found.write_bytes + found.zero_bytes for found in todo.values())
    slot = plan.update.slot.lower() if plan.update is not None else None
    if as_json:
        regions = [
            {
                "name": r.name, "start": r.start, "size": r.size, "data": r.data_bytes, "zeros": r.size - r.data_bytes,
                "write": found.write_bytes, "zero": found.zero_bytes, "kept": found.kept,
            }
            for r, found in todo.items()
        ]  # fmt: skip
        if mend is not None and mend.writes:
            regions.append(
                {
                    "name": mend.region, "start": mend.start, "size": mend.size, "data": mend.size, "zeros": 0,
                    "write": mend.size, "zero": 0, "kept": 0,
                }
            )  # fmt: skip
        record: dict[str, object] = {"image": plan.image, "size": plan.size, "target": identity._asdict()}
        record |= {"regions": regions, "slot": slot, "damaged_table": mend and mend.damaged}
        record |= {"bytes_written": written, "bytes_total": plan.size}
        if cost is not None:
            record |= {"bytes_on_wire": cost.on_wire, "seconds": cost.seconds}
        emit_json(record)
        return
    note(f"{plan.image} ({size_text(plan.size)}) to {device_text(identity)}" + (f", slot {slot}" if slot else ""))
    mended = [(mend.region, f"{mend.start:#x}", size_text(mend.size))] if mend is not None and mend.writes else []
    if prepared.found is None:
        table(
            [(r.name, f"{r.start:#x}", size_text(r.size), size_text(r.data_bytes)) for r in plan.regions]
            + [(*row, row[-1]) for row in mended],
            header=("region", "at", "size", "data"),
        )
        data = size_text(plan.data_bytes + plan.mended_bytes)
        note(f"{data} would be written, the rest filled with zeros; nothing was changed")
    else:
        rows = [
            (r.name, f"{r.start:#x}", size_text(r.size), size_text(f.write_bytes), size_text(f.zero_bytes))
            for r, f in todo.items()
        ] + [(*row, row[-1], size_text(0)) for row in mended]
        table(rows, header=("region", "at", "size", "write", "zero"))
        note(f"{size_text(written)} would be written, the rest is already right; nothing was changed")
    if cost is not None and cost.seconds is not None and written:
        most = "up to " if cost.at_most else ""
        note(f"{most}{size_text(cost.on_wire)} to transfer, about {cost.seconds:.1f} s at the speed of this link")


def show_results(
    todo: list[Prepared],
    identity: Identity,
    results: list[RegionResult],
    seconds: float,
    on_wire: int | None,
    *,
    as_json: bool,
) -> None:
    """Print what was done, by region."""
    plan = todo[0].plan
    if as_json:
        keys = (
            "name", "start", "size", "written", "zeroed", "copied", "kept", "verified", "write_seconds",
            "verify_seconds",
        )  # fmt: skip
        regions = [{key: getattr(result, key) for key in keys} for result in results]
        written = sum(result.written + result.zeroed + result.copied for result in results)
        emit_json(
            {
                "image": plan.image,
                "target": identity._asdict(),
                "slot": plan.update.slot.lower() if plan.update is not None else None,
                "damaged_table": todo[-1].plan.mend and todo[-1].plan.mend.damaged,
                "seconds": seconds,
                "bytes_total": plan.size,
                "bytes_written": written,
                "bytes_on_wire": written if on_wire is None else on_wire,
                "regions": regions,
            }
        )
        return
    table(
        [
            (
                r.name,
                f"{r.start:#x}",
                size_text(r.written + r.copied),
                size_text(r.zeroed),
                size_text(r.kept),
                _rate(r.written + r.copied + r.zeroed, r.write_seconds),
                "yes" if r.verified == r.size else "no",
            )
            for r in results
        ],
        header=("region", "at", "written", "zeroed", "already right", "rate", "verified"),
    )


def _rate(size: int, seconds: float) -> str:
    return f"{size_text(int(size / seconds))}/s" if size and seconds > 0 else ""
