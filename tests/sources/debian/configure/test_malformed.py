# SPDX-License-Identifier: Apache-2.0
"""Whatever packages bring: an error of ours or a result, never another exception."""

from __future__ import annotations

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st
from sources.debian.configure.made import MASTERS, some_accounts, tree_with

from erofs_edge.errors import ErofsEdgeError, SourceError
from erofs_edge.manifest.model import System
from erofs_edge.sources.debian.configure.accounts import Ids
from erofs_edge.sources.debian.configure.alternatives import parse_alternatives
from erofs_edge.sources.debian.configure.certificates import subject_hash
from erofs_edge.sources.debian.configure.ids import assign_ids
from erofs_edge.sources.debian.configure.pam import STACKS, render_stacks
from erofs_edge.sources.debian.configure.tmpfiles import apply_tmpfiles
from erofs_edge.sources.debian.configure.units import enable, enabled_by_script

WORD = st.sampled_from(
    [
        "-",
        "0",
        "99999999999",
        "~0755",
        "0999",
        "/etc/x",
        "/etc/[",
        "/../x",
        '"',
        "\\",
        "\\x4",
        "%",
        "%%",
        "%i",
        "name",
        ":",
        "1:2",
    ]
)
BYTES = st.one_of(st.binary(max_size=60), st.lists(WORD, max_size=8).map(" ".join).map(str.encode))
KINDS = st.sampled_from(
    [b"u", b"u!", b"g", b"m", b"r", b"d", b"L+", b"f", b"C", b"c", b"z", b"Z", b"w", b"p", b"e", b"", b"?"]
)
LINES = st.lists(st.tuples(KINDS, BYTES).map(b" ".join), max_size=5).map(b"\n".join)


@given(LINES)
@example(b"u \xff - \xff")
@example(b"d /etc/x 9999")
@example(b"d /etc/x abc")
@example(b"z /etc/[z-a] 0644")
def test_lines(data: bytes) -> None:
    tree = tree_with(MASTERS | {"usr/lib/sysusers.d/x.conf": data, "usr/lib/tmpfiles.d/x.conf": data, "etc/x": ""})
    with contextlib.suppress(ErofsEdgeError):
        assign_ids(tree, System(system="x"), Ids({}, {}))
    with contextlib.suppress(SourceError):
        apply_tmpfiles(tree, some_accounts())


@given(BYTES, BYTES)
@example(b"", b"Default: yes\nPriority: high\n")
@example(b"", b"Default: yes\nAuth-Type: Primary\nAuth:\n\t\xff\n")
@example(b"[Install]\nWantedBy=%q\nAlias=../../x", b"")
@example(b"[Install]\nAlias=a/b/../../../c", b"")
def test_units_and_profiles(unit: bytes, profile: bytes) -> None:
    templates = {f"usr/share/pam/common-{s}": b"" for s in STACKS}
    tree = tree_with({"usr/lib/systemd/system/x@a.service": unit, "usr/share/pam-configs/x": profile, **templates})
    with contextlib.suppress(SourceError):
        enable(tree, "x@a.service")
    with contextlib.suppress(SourceError):
        render_stacks(tree)


@given(
    st.one_of(
        st.text(max_size=80), st.lists(WORD, max_size=9).map("update-alternatives --install ".__add__("{}").format)
    )
)
@example("update-alternatives --install")
@example("update-alternatives --install --install --install a b 1 --slave x")
def test_scripts(text: str) -> None:
    parse_alternatives(text, "p")
    enabled_by_script(text)


@given(st.binary(max_size=64))
@example(b"\x30\x80")
@example(b"\x30\x84\xff\xff\xff\xff")
def test_certificates(der: bytes) -> None:
    import base64

    with contextlib.suppress(SourceError):
        subject_hash(b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END", "x")
