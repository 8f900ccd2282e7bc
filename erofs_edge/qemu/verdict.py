# SPDX-License-Identifier: Apache-2.0
"""Decide when a boot counts as good, and when a damaged system counts as stopped. Sans-I/O: events in, a verdict
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from erofs_edge.qemu.console import Event
from erofs_edge.qemu.stages import NAMES, TITLES, Match, next_stage


@dataclass(frozen=True, slots=True)
class Expected:
    """What the guest must report. `root_hash`: hex; `data`: the file system of /var."""

    root_hash: str
    slot: str
    data: str = "ext4"

    def differences(self, report: dict[str, str]) -> list[str]:
        """What a report lacks or states differently, one phrase each; empty for a correct one."""
        wanted = {
            "root": "erofs",
            "dm": "verity",
            "status": "V",
            "roothash": self.root_hash,
            "slot": self.slot,
            "var": f"{self.data}:rw",
        }
        wrong = [
            f"{key}={report[key]} where {key}={value} was expected" if key in report else f"no {key}="
            for key, value in wanted.items()
            if report.get(key) != value
        ]
        if self.data != "tmpfs" and not report.get("data", "").startswith("/dev/"):
            wrong.append(f"data={report.get('data', '')} is no device")
        return wrong


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a damaged system must stop, and the trouble on the console that proves why."""

    stage: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`stage`: the stage that failed, or at which a damaged system was stopped; 'login' after a good boot. `late`: the
    time limit was reached."""

    ok: bool
    stage: str
    reason: str
    late: bool = False


@dataclass(slots=True)
class Watch:
    """Collects events until the outcome is clear. With `stop`, the boot is good if it fails in exactly that way.

    `titles`: names of the stages in messages. `checks`: whether the system's own checks must pass; `lines`: expressions
    that must each have matched a line; `repaired`: whether the guest must have found errors that were corrected.
    """

    expected: Expected
    stop: Stop | None = None
    checks: bool = False
    lines: set[str] = field(default_factory=set)
    repaired: bool = False
    reached: dict[str, float] = field(default_factory=dict)
    troubles: list[Match] = field(default_factory=list)
    report: dict[str, str] | None = None
    titles: Mapping[str, str] = field(default_factory=lambda: TITLES)

    def see(self, event: Event) -> Verdict | None:
        """The verdict, once there is one. A stage counts when it is first passed."""
        match = event.match
        if match.kind == "line":
            self.lines.discard(match.name)
            return self._passed("u-boot")
        if match.kind == "trouble":
            self.troubles.append(match)
            return self._trouble(match)
        if match.name == "slot" and match.fields["slot"] != self.expected.slot and self.stop is None:
            return Verdict(False, "slot", f"U-Boot chose slot {match.fields['slot']}, not {self.expected.slot}")
        if match.kind == "report":
            self.report = match.fields
            wrong = self.expected.differences(match.fields)
            if wrong and self.stop is None:
                return Verdict(False, "report", "; ".join(wrong))
        self.reached.setdefault(match.name, event.at)
        return self._passed(match.name)

    @property
    def other_build(self) -> bool:
        """Whether the guest runs another build than expected."""
        return self.report is not None and self.report.get("roothash") not in (None, self.expected.root_hash)

    def end(self, reason: str) -> Verdict:
        """The verdict when nothing more will come: the machine ended, or the time limit was reached."""
        return self._stopped(next_stage(self.reached), reason)

    def timed_out(self, seconds: float) -> Verdict:
        """The verdict after the time limit. A machine that hangs has not been stopped by anything, damaged or not."""
        stage = self._missing()
        return Verdict(False, stage, f"not reached within {seconds:g} s", late=True)

    def _passed(self, name: str) -> Verdict | None:
        if self.stop is not None:
            if NAMES.index(name) > NAMES.index(self.stop.stage):
                return Verdict(False, name, f"the damaged system got past the stage '{self.titles[self.stop.stage]}'")
            return None
        if self.report is None or "login" not in self.reached or self._pending():
            return None
        if "signature" not in self.reached:
            return Verdict(False, "signature", "the system started, but its boot loader verified no signature")
        if not self.repaired:
            return Verdict(True, "checks" if self.checks else "login", "")
        corrected = self.report.get("fec", "0")
        return Verdict(corrected not in ("0", "none"), "login", f"the guest's kernel has corrected {corrected} blocks")

    def _pending(self) -> bool:
        """Whether something that the manifest requires is still missing."""
        return (self.checks and "checks" not in self.reached) or bool(self.lines)

    def _trouble(self, match: Match) -> Verdict | None:
        if match.name in ("slot-refused", "no-slot", "efi-stopped"):
            return self._refused(match)
        if match.name == "check" and self.stop is None:
            return Verdict(False, "checks", f"{match.fields['name']}: {match.fields['reason']}")
        if match.name == "failed":
            named = match.fields["stage"]
            return self._stopped(named if named in NAMES else next_stage(self.reached), match.fields["reason"])
        if match.name == "panic":
            return self._stopped(next_stage(self.reached), f"kernel panic: {match.fields['reason']}")
        return None

    def _refused(self, match: Match) -> Verdict | None:
        """The messages of firmware and boot loader when they start nothing."""
        if match.name == "efi-stopped":
            refused = self._line_of("efi-refused")
            return self._stopped("fit" if refused else "slot", refused or match.text.strip())
        if match.name == "no-slot":
            return self._stopped("fit", f"U-Boot found no slot to start{self._why()}")
        if self.stop is None:
            return self._stopped("fit", f"U-Boot refused slot {match.fields['slot']}{self._why()}")
        return None

    def _why(self) -> str:
        lines = [match.text.strip() for match in self.troubles if match.name.startswith(("fit-", "too-old"))]
        return f": {lines[-1]}" if lines else ""

    def _stopped(self, stage: str, reason: str) -> Verdict:
        if self.stop is None:
            return Verdict(False, stage, reason)
        if stage != self.stop.stage:
            return Verdict(False, stage, f"stopped at another stage than '{self.titles[self.stop.stage]}': {reason}")
        proof = self._line_of(self.stop.evidence)
        if proof is None:
            return Verdict(False, stage, f"stopped at the right stage, but not for the damage: {reason}")
        return Verdict(True, stage, proof)

    def _line_of(self, trouble: str) -> str | None:
        """The first line that showed that trouble."""
        return next((match.text.strip() for match in self.troubles if match.name == trouble), None)

    def _missing(self) -> str:
        if self.report is None and "login" in self.reached:
            return "report"
        if "login" in self.reached and self._pending():
            return "checks"
        return next_stage(self.reached)
