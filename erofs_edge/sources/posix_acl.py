# SPDX-License-Identifier: Apache-2.0
"""Access control lists, from text to the attribute in which Linux stores them.

Text as in acl(5), "long text form" and "short text form", with numbers for names, or with star's fourth field (star(5),
SCHILY.acl.access). Attribute: include/uapi/linux/posix_acl_xattr.h, version 2: le32 version, then entries of le16 tag,
le16 permissions, le32 id, ordered by tag and id.
"""

from __future__ import annotations

import re
import struct

VERSION = 2
NO_ID = 0xFFFFFFFF
TAGS = {"user": (0x01, 0x02), "group": (0x04, 0x08), "mask": (0x10, 0x10), "other": (0x20, 0x20)}
"""kind → tag of the entry without a qualifier, and with one"""
MINIMAL = {0x01, 0x04, 0x20}
MAX_ENTRIES = 1000


def acl_attribute(text: str, *, default: bool = False) -> bytes | None:
    """The attribute's value; None for a list that says no more than the mode does (a `default` one is always kept).

    Raises ValueError if the text is not a list, or names someone without a number.
    """
    entries: dict[tuple[int, int], int] = {}
    lines = [line.partition("#")[0].strip() for line in re.split(r"[,\n]", text)]
    for line in filter(None, lines):
        kind, qualifier, permissions, *rest = [*line.split(":"), "", ""][:4] if line.count(":") < 4 else ["", "", ""]
        word = next((word for word in TAGS if kind in (word, word[0])), None)
        if word is None or not re.fullmatch("[r-][w-][x-]", permissions):
            raise ValueError(f"{line!r} is no entry of an access control list")
        number = next((part for part in (*rest, qualifier) if re.fullmatch("[0-9]{1,10}", part)), None)
        if qualifier and (number is None or int(number) >= NO_ID):
            raise ValueError(f"{line!r} has a name and no number")
        key = (TAGS[word][bool(qualifier)], int(number or 0) if qualifier else NO_ID)
        if key in entries or (qualifier and word in ("mask", "other")) or len(entries) >= MAX_ENTRIES:
            raise ValueError(f"{line!r} does not belong there")
        entries[key] = sum(bit for bit, letter in zip((4, 2, 1), permissions, strict=True) if letter != "-")
    tags = {tag for tag, _ in entries}
    if not tags >= MINIMAL or ({0x02, 0x08} & tags and 0x10 not in tags):
        raise ValueError("an access control list without all of its parts")
    if tags == MINIMAL and not default:
        return None
    body = b"".join(struct.pack("<HHI", tag, bits, number) for (tag, number), bits in sorted(entries.items()))
    return struct.pack("<I", VERSION) + body
