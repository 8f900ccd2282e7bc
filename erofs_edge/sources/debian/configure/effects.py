# SPDX-License-Identifier: Apache-2.0
"""Known effects of maintainer scripts, as data: effects.yaml, and how it applies to a package's scripts.

A script is identified by its package's name, its own name and the sha256 of its text. Nothing is ever run.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import Package

KIND = "effects-1"
"""of the table, in the cache"""

ScriptName = Literal["preinst", "config", "postinst"]
SCRIPTS: tuple[ScriptName, ...] = ("preinst", "config", "postinst")
"""the scripts that run when a package is installed for the first time, in that order"""

ADDED = re.compile(r"^# Automatically added by (dh_\w+)[^\n]*\n.*?^# End automatically added section\n?", re.M | re.S)
"""parts that debhelper's autoscript() adds to maintainer scripts"""
READ = {
    "dh_installalternatives", "dh_installdeb", "dh_installinit", "dh_installsystemd", "dh_installsystemduser",
    "dh_installsysusers", "dh_installtmpfiles", "dh_makeshlibs", "dh_python3", "dh_systemd_enable", "dh_systemd_start",
}  # fmt: skip
PLAIN = re.compile(
    r"\s*(#.*|set -e[ux]*|exit 0|:|case \"?\$1\"? in|(?:\w+(?:-\w+)*|\*)(?: ?\| ?\w+(?:-\w+)*)*\)|;;|esac"
    r"|if \[ \"?\$1\"? = \"?configure\"? \]; ?then|then|fi|update-alternatives (?:--quiet )?--install [^$`;&|<>()]*"
    r"|ldconfig|activate-noawait \S+)?\s*"
)
"""lines of a script that have no effect, or one that is read from the text"""

Path = Annotated[str, Meta(pattern=r"^[^/]")]
"""below the root, without a leading slash"""


class Copy(Struct, frozen=True, forbid_unknown_fields=True, tag="copy", tag_field="do"):
    """A file of the package, copied to another place unless something is there."""

    from_: Path = field(name="from")
    to: Path
    mode: str | None = None


class File(Struct, frozen=True, forbid_unknown_fields=True, tag="file", tag_field="do"):
    """A file with this text, unless something is there."""

    path: Path
    text: str = ""
    mode: str = "0644"
    owner: str = "root:root"


class Directory(Struct, frozen=True, forbid_unknown_fields=True, tag="directory", tag_field="do"):
    """A directory, unless something is there."""

    path: Path
    mode: str = "0755"
    owner: str = "root:root"


class Link(Struct, frozen=True, forbid_unknown_fields=True, tag="link", tag_field="do"):
    """A symlink; it replaces an empty directory."""

    path: Path
    target: str


class Permissions(Struct, frozen=True, forbid_unknown_fields=True, tag="permissions", tag_field="do"):
    """Owner and mode of a file that the package ships (dpkg-statoverride)."""

    path: Path
    mode: str
    owner: str


class AddGroup(Struct, frozen=True, forbid_unknown_fields=True, tag="group", tag_field="do"):
    """A system group as addgroup --system makes it."""

    name: str


class Enable(Struct, frozen=True, forbid_unknown_fields=True, tag="enable", tag_field="do"):
    """A unit that the script enables with systemctl itself, not with deb-systemd-helper."""

    unit: str


class Nss(Struct, frozen=True, forbid_unknown_fields=True, tag="nss", tag_field="do"):
    """A service appended to databases of nsswitch.conf."""

    service: str
    databases: list[str]


class Generate(Struct, frozen=True, forbid_unknown_fields=True, tag="generate", tag_field="do"):
    """A registry generated from what all packages together ship."""

    what: Literal["accounts", "pam", "shells", "certificates"]


Effect = Copy | File | Directory | Link | Permissions | AddGroup | Enable | Nss | Generate


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one script: the hashes of the reviewed texts, their effects, and why the rest is left out."""

    sha256: list[str]
    effects: list[Effect] = []
    note: str = ""


Table = dict[str, dict[ScriptName, Script]]


@dataclass(frozen=True, slots=True)
class Known:
    """A script of a package and its entry in the table; `entry` None means that nothing is known."""

    package: str
    version: str
    script: str
    sha256: str
    entry: Script | None

    @property
    def changed(self) -> bool:
        """Whether it is known by name but its text is not one of those reviewed."""
        return self.entry is not None and self.sha256 not in self.entry.sha256


class Kept(msgspec.Struct, array_like=True):
    """A table in the form kept in the cache."""

    table: Table


_KEPT: dict[str, Table] = {}
"""tables from the cache, by the hash of their text"""


@functools.cache
def load_table() -> Table:
    """The table shipped with the program."""
    text = _text()
    if (kept := _KEPT.get(_digest(text))) is not None:
        return kept
    from ruamel.yaml import YAML

    return msgspec.convert(YAML(typ="safe").load(text), Table)


def recall_table(cache: Cache) -> None:
    """Let `load_table` use the table parsed by an earlier run, from the cache, which takes a hundredth of the time;
    store it there if it is missing.
    """
    digest = _digest(_text())
    if digest in _KEPT:
        return
    kept = cache.load_record(KIND, digest, Kept)
    if kept is None:
        kept = Kept(load_table())
        cache.store_record(KIND, digest, kept)
    _KEPT[digest] = kept.table


def _text() -> str:
    return resources.files(__package__).joinpath("effects.yaml").read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def known_scripts(packages: Iterable[Package], table: Table | None = None) -> Iterator[Known]:
    """Every install-time script of the packages, by package name, each with its entry in the table."""
    entries = load_table() if table is None else table
    for package in sorted(packages, key=lambda p: p.name):
        for script in SCRIPTS:
            text = package.scripts.get(script)
            if text is None:
                continue
            digest = hashlib.sha256(text).hexdigest()
            entry = entries.get(package.name, {}).get(script)
            if entry is None and is_plain(text.decode("utf-8", "replace")):
                entry = Script([digest], note="only calls that are read without running the script")
            yield Known(package.name, package.version, script, digest, entry)


def is_plain(text: str) -> bool:
    """Whether a shell script does nothing that is not read from packages anyway: parts that debhelper adds for units,
    sysusers.d, tmpfiles.d, libraries, conffiles and Python's bytecode, and alternatives with literal names."""
    if text.startswith("#!") and not re.match(r"#! ?/bin/(ba|da)?sh\b", text):
        return False
    rest = ADDED.sub(lambda match: "" if match[1] in READ else "\0", text).replace("\\\n", " ")
    return all(PLAIN.fullmatch(line) for line in rest.split("\n"))


def adduser_groups(packages: Iterable[Package], table: Table | None = None) -> list[str]:
    """The system groups that known scripts create, in the packages' order."""
    return [
        effect.name
        for known in known_scripts(packages, table)
        for effect in (known.entry.effects if known.entry is not None else ())
        if isinstance(effect, AddGroup)
    ]
