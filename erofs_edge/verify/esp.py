# SPDX-License-Identifier: Apache-2.0
"""An EFI system partition: every file on it is a program signed by the key, and kernel images name their system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from erofs_edge.boot.contents import init_values_of
from erofs_edge.boot.uefi import IMAGES, SLOT_ARGUMENT
from erofs_edge.disk.fat_read import Volume
from erofs_edge.errors import FormatError
from erofs_edge.trust import pe
from erofs_edge.trust.authenticode import verify_image
from erofs_edge.trust.key import VerificationKey
from erofs_edge.verify.checks import Verdict

FILE_MAX = 1 << 30
Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Started:
    """A kernel image signed by the key: the slot that it starts, and the values that it boots with."""

    what: str
    slot: str
    values: dict[str, str]


def is_esp(read: Read, size: int) -> bool:
    """Whether bytes [0, size) are a FAT volume with a directory EFI. Raises FormatError if it is damaged."""
    if read(510, 2) != b"\x55\xaa":
        return False
    try:
        volume = Volume(read, size)
    except FormatError:
        return False
    return any(entry.path.upper().startswith("EFI/") for entry in volume.files())


def verify_esp(read: Read, size: int, name: str, key: VerificationKey, verdict: Verdict) -> list[Started]:
    """Check every file of a volume with a key; return what its valid kernel images start."""
    volume = Volume(read, size)
    found = []
    for entry in sorted(volume.files(), key=lambda entry: entry.path):
        what = f"{name}: {entry.path}"
        with verdict.check(what, f"key '{key.name}'") as row:
            if entry.size > FILE_MAX:
                raise FormatError(f"a program of {entry.size} bytes")
            image = volume.content(entry.clusters, entry.size)
            row.digest = verify_image(image, key).hex()
            if entry.path.upper().startswith(IMAGES.upper() + "/"):
                found.append(started(image, what))
    return found


def started(image: bytes, what: str) -> Started:
    """The values that one of our kernel images boots with. Raises FormatError for any other; verify it first."""
    parsed = pe.parse(image)
    parts = {}
    for name in (".initrd", ".cmdline"):
        section = parsed.section(name)
        if section is None:
            raise FormatError(f"a kernel image without {name}")
        parts[name] = pe.section_content(image, section)
    words = parts[".cmdline"].decode("utf-8", "replace").split()
    slots = [word.removeprefix(SLOT_ARGUMENT) for word in words if word.startswith(SLOT_ARGUMENT)]
    if len(slots) != 1:
        raise FormatError(f"a kernel image with {len(slots)} slots among its arguments")
    values = init_values_of(parts[".initrd"])
    if [word for word in words if not word.startswith(SLOT_ARGUMENT)] != values.get("CMDLINE", "").split():
        raise FormatError("a kernel image with other arguments than its initramfs expects")
    return Started(what, slots[0], values)
