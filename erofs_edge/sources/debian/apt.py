# SPDX-License-Identifier: Apache-2.0
"""apt as a resolver in a root of its own: private lists, cache and an empty dpkg status.

The host's package state is neither read nor changed; its apt configuration is read for proxies and
credentials only. Package indexes are verified against Debian's archive key by apt itself.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from erofs_edge.errors import MirrorError, SourceError, ToolError
from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.debian.mirror import Mirror

TIMEOUT = 900  # seconds for one apt call
COMPONENTS = "main non-free-firmware"
"""boards need the second for what their vendors give no source of (raspi-firmware); nothing else is in it"""


class Apt:
    """An open, up-to-date package index of one suite and architecture. Use `open_apt` to get one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def closure(self, names: Iterable[str]) -> list[LockedPackage]:
        """The packages asked for and all that they depend on (no recommends), sorted by name.

        Raises SourceError with apt's reason, shortened, where a name is unknown or dependencies conflict.
        """
        text = self._run("apt-get", "install", "-s", "-y", *names)
        chosen = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", text, re.M)
        return self.describe(f"{name}={version}" for name, version in chosen)

    def describe(self, specs: Iterable[str]) -> list[LockedPackage]:
        """`name` or `name=version` as the index has them, without dependencies, sorted by name."""
        wanted = sorted(specs)
        if not wanted:
            return []
        found: dict[str, LockedPackage] = {}
        for stanza in self._run("apt-cache", "show", "--no-all-versions", *wanted).split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.M))
            if "Filename" in fields:
                found.setdefault(fields["Package"], _locked(fields))
        names = [spec.split("=")[0].split(":")[0] for spec in wanted]
        if missing := [name for name in names if name not in found]:
            raise SourceError(f"no such package: {' '.join(missing)}", hint="check the name and the suite")
        return [found[name] for name in sorted(set(names))]

    def download(self, names: Iterable[str], folder: Path) -> list[Path]:
        """Download `names` and all that they depend on into a folder; the .deb files, sorted by name."""
        self._run("apt-get", "install", "-y", "--download-only", "-o", f"Dir::Cache::archives={folder}", *names)
        return sorted(folder.glob("*.deb"))

    def release_date(self) -> int:
        """Seconds since 1970 of the newest release file in use."""
        dates = []
        for path in sorted((self._folder / "lists").glob("*Release")):
            match = re.search(r"^Date: (.+)$", path.read_text(errors="replace"), re.M)
            if match:
                dates.append(int(email.utils.parsedate_to_datetime(match[1]).timestamp()))
        if not dates:
            raise MirrorError("the mirror's release files carry no date")
        return max(dates)

    def _run(self, program: str, *args: str) -> str:
        argv = [program, "-c", str(self._folder / "apt.conf"), "-q", *args]
        env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                argv, cwd=self._folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MirrorError(f"{program} {args[0]} gave no answer within {TIMEOUT} s") from error
        if done.returncode:
            raise _failure(args[0], done.stderr + "\n" + done.stdout)
        return done.stdout

    def _update(self) -> None:
        self._run("apt-get", "update")
        if not any((self._folder / "lists").glob("*_Packages*")):
            raise MirrorError("the mirror gave no package index", hint="check the suite's name and the network")


@contextlib.contextmanager
def open_apt(
    mirror: Mirror, suite: str, arch: str, *, pockets: Iterable[str] = ("", "-updates", "-security")
) -> Iterator[Apt]:
    """An `Apt` with fresh indexes of suite + pockets; its folder goes when the block ends.

    `arch` is a Debian architecture. A pocket whose archive the mirror lacks is left out; sid has none.
    Raises ToolError where the host has no apt, MirrorError where nothing can be reached or verified.
    """
    for tool in ("apt-get", "apt-cache"):
        if not shutil.which(tool):
            raise ToolError(f"{tool} not found", hint="package resolution needs a Debian-like host: Debian 12 or newer")
    if suite in ("sid", "unstable"):
        pockets = ("",)
    with tempfile.TemporaryDirectory(prefix="erofs-edge-apt-") as name:
        folder = Path(name)
        for sub in ("lists/partial", "archives/partial", "none", "log"):
            (folder / sub).mkdir(parents=True)
        (folder / "status").touch()
        lines = []
        for pocket in pockets:
            archive = "debian-security" if pocket == "-security" else "debian"
            if archive in mirror.archives:
                options = f"arch={arch} signed-by={mirror.keyring}"
                lines.append(f"deb [{options}] {mirror.archives[archive]} {suite}{pocket} {COMPONENTS}\n")
        (folder / "sources.list").write_text("".join(lines))
        (folder / "apt.conf").write_text(_configuration(folder, arch, check_dates=not mirror.pinned))
        apt = Apt(folder)
        apt._update()
        yield apt


def _locked(fields: dict[str, str]) -> LockedPackage:
    # Debian keeps security updates under their own pool, so the path tells the archive
    path = fields["Filename"].removeprefix("./")
    return LockedPackage(
        name=fields["Package"],
        version=fields["Version"],
        arch=fields["Architecture"],
        archive="debian-security" if path.startswith("pool/updates/") else "debian",
        path=path,
        size=int(fields["Size"]),
        sha256=fields["SHA256"],
    )


def _failure(verb: str, text: str) -> SourceError:
    """apt's own words, shortened to what explains the failure."""
    lines = [line.strip() for line in text.split("\n") if re.match(r"\s*(E:|W: GPG|Err:|\S+ : )", line)]
    unknown = re.findall(r"Unable to locate package (\S+)", text)
    if unknown:
        return SourceError(f"no such package: {' '.join(unknown)}", hint="check the name and the suite")
    reason = "; ".join(line.removeprefix("E: ") for line in lines[:4]) or text.strip()[-300:]
    if verb == "update":
        return MirrorError(
            f"the package index cannot be fetched or verified: {reason}",
            hint="check the network, the host's apt sources, or set EROFS_EDGE_MIRROR",
        )
    return SourceError(f"apt cannot resolve the packages: {reason}")


def _configuration(folder: Path, arch: str, *, check_dates: bool) -> str:
    # read after the host's own files, so that proxies and credentials stay and hooks go
    return f"""
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "{folder}/none";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{folder}/none";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::State::extended_states "{folder}/extended_states";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Log "{folder}/log";
#clear APT::Architectures;
APT::Architecture "{arch}";
APT::Architectures "{arch}";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::Check-Valid-Until "{"true" if check_dates else "false"}";
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::Contents-deb;
#clear APT::Update;
#clear DPkg;
"""
