# SPDX-License-Identifier: Apache-2.0
"""The value types that model.py uses, with patterns shared by schema and loader.

A type's `extra` tells the loader what the text means (``form``) and how to describe it in an error (``says``).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

SIZE_PATTERN = "^[0-9]+([KkMmGg]([Ii]?[Bb])?)?$"

Size = Annotated[
    str | int,
    Meta(
        description="bytes, or with K, M, G (powers of 1024)",
        extra={"form": "size"},
        extra_json_schema={"pattern": SIZE_PATTERN, "minimum": 1},
    ),
]
PartitionSize = Annotated[
    str | int,
    Meta(
        description="bytes, or with K, M, G (powers of 1024); 'rest' is what the disk has left",
        extra={"form": "size", "words": ("rest",)},
        extra_json_schema={"pattern": f"^rest$|{SIZE_PATTERN}", "minimum": 1},
    ),
]
Mode = Annotated[
    str | int,
    Meta(
        description="permission bits, octal as in chmod: 0755",
        extra={"form": "mode"},
        extra_json_schema={"pattern": "^(0o)?[0-7]{1,4}$", "minimum": 0},
    ),
]
HostPath = Annotated[
    str,
    Meta(
        min_length=1,
        description="a path on this machine, relative to the file that says it",
        extra={"form": "path"},
    ),
]
KeyUri = Annotated[
    str,
    Meta(
        pattern=r"^(dev:[A-Za-z0-9._-]+|(file|pkcs11|command|offline):.+)$",
        extra={"form": "key", "says": "dev:NAME, file:PATH, pkcs11:…, command:… or offline:…"},
    ),
]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9._+-]*$",
        extra={"says": "a name of lower-case letters, digits and . _ + -"},
    ),
]
PackageName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9.+-]+$",
        extra={"says": "the name of a Debian package (its version is the lock's)"},
    ),
]
UnixName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z_][a-z0-9_-]{0,30}\$?$",
        extra={"says": "a user or group name: lower-case letters, digits, _ and -, at most 32"},
    ),
]
UnitName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9:_.\\@-]+\.(service|socket|target|timer|mount|automount|path|slice|swap)$",
        extra={"says": "the name of a systemd unit with its type, as in ssh.service"},
    ),
]
DevicePath = Annotated[
    str,
    Meta(
        pattern=r"^/(?!(.*/)?\.\.(/|$))[^\x00]*$",
        extra={"says": "an absolute path on the device, without '..'"},
    ),
]
Owner = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*:[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        extra={"says": "an owner as user:group (names or numbers)"},
    ),
]
Line = Annotated[
    str,
    Meta(pattern=r"^[^\x00-\x1f\x7f]*$", extra={"says": "text of one line"}),
]
PasswdField = Annotated[
    str,
    Meta(pattern=r"^[^:\x00-\x1f\x7f]*$", extra={"says": "text without ':' and line breaks, as passwd(5) needs"}),
]
Sha256 = Annotated[
    str,
    Meta(pattern=r"^[0-9a-f]{64}$", extra={"says": "a SHA-256: 64 lower-case hexadecimal digits"}),
]
Id = Annotated[int, Meta(ge=0, le=4294967294)]
