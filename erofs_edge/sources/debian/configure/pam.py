# SPDX-License-Identifier: Apache-2.0
"""The PAM stacks that services include: what pam-auth-update generates from the profiles in packages.

Rules of pam-auth-update(8): profiles with ``Default: yes`` by descending priority; the first module of a block uses the
``-Initial`` lines; ``end`` in a jump becomes the number of Primary lines up to the block's end.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field

from erofs_edge.errors import SourceError
from erofs_edge.tree import BytesContent, FileTree, Inode

PROFILES = "usr/share/pam-configs"
TEMPLATES = "usr/share/pam"
STACKS = ("auth", "account", "password", "session", "session-noninteractive")
END = r"\bend\b(?=[^\]]*\])"
"""the word 'end' inside the brackets of a control field"""


@dataclass(frozen=True, slots=True)
class Profile:
    """One file of /usr/share/pam-configs; `fields` maps lower-case names to lists of lines."""

    name: str
    fields: dict[str, list[str]] = field(default_factory=dict)

    def one(self, key: str) -> str:
        return (self.fields.get(key) or [""])[0]


def parse_profile(name: str, text: str) -> Profile:
    """Parse fields ``Name: value``; continuation lines are indented."""
    fields: dict[str, list[str]] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace():
            fields.setdefault(key, []).append(line.strip())
            continue
        label, _, value = line.partition(":")
        key = label.strip().lower()
        fields[key] = [value.strip()] if value.strip() else []
    return Profile(name, fields)


def render_stacks(tree: FileTree) -> None:
    """Write /etc/pam.d/common-*. Existing files (an overlay's) are kept.

    Raises SourceError if a template lacks its placeholders.
    """
    profiles = _default_profiles(tree)
    for stack in STACKS:
        template = tree.get(f"{TEMPLATES}/common-{stack}", follow=True)
        path = f"etc/pam.d/common-{stack}"
        if template is None or tree.get(path) is not None:
            continue
        text = template.read().decode("utf-8", "surrogateescape")
        prefix = "session_nonint" if stack == "session-noninteractive" else stack
        for block in ("primary", "additional"):
            marker = f"${prefix}_{block}"
            if marker not in text:
                raise SourceError(f"no {marker} in the template", where=f"/{TEMPLATES}/common-{stack}")
            text = text.replace(marker + "\n", "".join(line + "\n" for line in _block(profiles, stack, block)))
        content = BytesContent(text.encode("utf-8", "surrogateescape"))
        tree.add(path, Inode(stat.S_IFREG | 0o644, content=content, origin="libpam-runtime"))


def _default_profiles(tree: FileTree) -> list[Profile]:
    folder = tree.get(PROFILES, follow=True)
    profiles = [
        parse_profile(os.fsdecode(name), node.read().decode("utf-8", "surrogateescape"))
        for name, node in (sorted(folder.children.items()) if folder is not None else [])
        if node.is_file
    ]
    chosen = [p for p in profiles if p.one("default").lower() == "yes"]
    return sorted(chosen, key=lambda p: (_priority(p), p.name), reverse=True)


def _priority(profile: Profile) -> int:
    """As Perl parses it: the leading digits, else 0."""
    match = re.match(r"-?\d+", profile.one("priority"))
    return int(match[0]) if match else 0


def _block(profiles: list[Profile], stack: str, block: str) -> list[str]:
    """The lines of one block of a stack."""
    kind = stack.partition("-")[0]
    lines: list[str] = []
    for profile in profiles:
        if profile.one(f"{kind}-type").lower() != block:
            continue
        if stack == "session-noninteractive" and "session-interactive-only" in profile.fields:
            continue
        initial = profile.fields.get(f"{kind}-initial") if not lines else None
        lines += initial or profile.fields.get(kind, [])
    if not lines and block == "primary":
        return [f"{kind}\t[default=1]\t\t\tpam_permit.so"]
    # a jump in the last block must not leave the stack
    end = len(lines) if block == "primary" else len(lines) - 1
    return [f"{kind}\t{re.sub(END, str(end - at), text)}" for at, text in enumerate(lines)]
