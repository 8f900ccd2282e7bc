# SPDX-License-Identifier: Apache-2.0
"""The meaning of console lines: the stages of a boot in their order, and the lines that end one.

A table of patterns, nothing else. Lines come without line end, escape sequences and control characters (see
console.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_PROMPT = r" *(?:(?!Last )[\w.-]+ )?login:"
"""a login prompt. getty writes the host's name, a space and the word separately (login-utils/agetty.c): on a busy
machine another program's line comes in between, and the rest of the prompt begins the next one"""
_PREFIX = rf"^(?:{_PROMPT} ?)?(?:\[ *\d+\.\d+\] )?(?:[\w.@-]+\[\d+\]: )?"
"""what may precede one of our lines: an unanswered prompt, a kernel time stamp, a journal identifier"""


@dataclass(frozen=True, slots=True)
class Stage:
    """A point that a good boot passes. `partial`: also matched in an unfinished line (a prompt)."""

    name: str
    title: str
    pattern: re.Pattern[str]
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """A meaningful line.

    kind    'stage' (name is a stage's), 'trouble' (name is a key of TROUBLE) or 'report'
    fields  named groups of the pattern, or the report's keys
    """

    kind: str
    name: str
    text: str
    fields: dict[str, str] = field(default_factory=dict)


def _line(pattern: str) -> re.Pattern[str]:
    return re.compile(_PREFIX + pattern)


STAGES = (
    Stage("u-boot", "U-Boot", re.compile(r"^U-Boot 20\d\d\.|UEFI firmware \(version ")),
    Stage("slot", "slot chosen", _line(r"erofs-edge: stage u-boot slot (?P<slot>\S+)$")),
    Stage(
        "signature",
        "FIT signed",
        re.compile(
            r"Verifying Hash Integrity \.\.\. sha256,rsa\d+:(?P<key>\S+)\+ OK|^EFI stub: UEFI Secure Boot is enabled\."
        ),
    ),
    # printed after the last image of the FIT has been checked (U-Boot boot/image-fdt.c)
    Stage("fit", "FIT verified", re.compile(r"^ *(?:Loading|Using) Device Tree (?:to|in place)")),
    Stage(
        "kernel", "kernel", re.compile(r"^Starting kernel \.\.\.|\] Booting Linux on physical CPU|^EFI stub: Booting")
    ),
    Stage("initramfs", "initramfs", _line(r"erofs-edge: stage initramfs(?: .*)?$")),
    Stage("verity", "dm-verity active", _line(r"erofs-edge: stage verity(?: .*)?$")),
    Stage("root", "EROFS root", _line(r"erofs-edge: stage root(?: .*)?$")),
    Stage("data", "data", _line(r"erofs-edge: stage data(?: .*)?$")),
    Stage("switch-root", "switch to the root file system", _line(r"erofs-edge: stage switch-root(?: .*)?$")),
    Stage("report", "guest report", _line(r"erofs-edge: report (?P<report>(?:[a-z]+=\S+ ?)+)$")),
    Stage("login", "login prompt", re.compile(rf"^(?:\[ *\d+\.\d+\] )?{_PROMPT}(?: |$)"), partial=True),
    Stage("checks", "system checks", _line("erofs-edge: smoke passed$")),
)
NAMES = tuple(stage.name for stage in STAGES)
TITLES = {stage.name: stage.title for stage in STAGES}
UEFI_TITLES = {**TITLES, "u-boot": "UEFI firmware", "signature": "secure boot on", "fit": "kernel image verified"}

TROUBLE = {
    "fit-signature": re.compile(r"Failed to verify required signature"),
    "fit-hash": re.compile(r"Bad hash value for|Bad Data Hash"),
    "fit-malformed": re.compile(
        r"Bad FIT .*image format|Can't get kernel image|can't get kernel FIT|Wrong Image (?:Type|Format)"
    ),
    "efi-refused": re.compile(
        r"Error loading .*\.efi: (?:Access denied|Security violation|.*)|^Image not authenticated"
    ),
    "efi-stopped": re.compile(r"BdsDxe: (?:failed to load .*|No bootable option .*)"),
    "too-old": _line(r"erofs-edge: (?:slot is too old: .*|FAILED rollback: .*)$"),
    "cmdline": _line(r"erofs-edge: FAILED initramfs: the kernel's arguments are not those of this build"),
    "vbmeta": _line(r"erofs-edge: FAILED vbmeta: .*$"),
    "slot-refused": _line(r"erofs-edge: slot does not start: (?P<slot>\S+)$"),
    "no-slot": _line("erofs-edge: no slot boots$"),
    "corrupt": re.compile(r"verity: \S+ (?:data|metadata) block \d+ is corrupted|dm-verity device corrupted"),
    "check": _line(r"erofs-edge: smoke FAILED (?P<name>\S+): (?P<reason>.*)$"),
    "unwell": _line(r"erofs-edge: slot \S+ is not well: .*$"),
    "watchdog": re.compile(r"watchdog did not stop!"),
    "failed": _line(r"erofs-edge: FAILED (?P<stage>[\w-]+): (?P<reason>.*)$"),
    "panic": re.compile(r"Kernel panic - not syncing: (?P<reason>.*)$"),
}
"""'slot-refused' ends the boot of that slot; 'no-slot', 'failed' and 'panic' end the whole boot; the others are
evidence
"""


def next_stage(reached: Iterable[str]) -> str:
    """The stage after the furthest one reached; nothing has to follow the login prompt."""
    furthest = max((NAMES.index(name) for name in reached), default=-1)
    return NAMES[min(furthest + 1, NAMES.index("login"))]


def match_line(line: str, *, partial: bool = False) -> Iterator[Match]:
    """The meaning of a line, None for most. Unfinished lines are only searched for prompts."""
    for stage in STAGES:
        if partial and not stage.partial:
            continue
        found = stage.pattern.search(line)
        if found and stage.name == "report":
            fields = dict(pair.split("=", 1) for pair in found["report"].split())
            yield Match("report", stage.name, line, fields)
        elif found:
            yield Match("stage", stage.name, line, found.groupdict())
    if not partial:
        for name, pattern in TROUBLE.items():
            if found := pattern.search(line):
                yield Match("trouble", name, line, found.groupdict())
