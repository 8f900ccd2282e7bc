# SPDX-License-Identifier: Apache-2.0
"""apt as a resolver in a private root: its own lists, cache and an empty dpkg status.

The host's package state is neither read nor changed; its apt configuration is read for proxies and credentials only.
apt itself verifies package indexes with Debian's archive key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from erofs_edge.errors import ErofsEdgeError, MirrorError, SourceError, ToolError
from erofs_edge.manifest.model import LockedPackage
from erofs_edge.sources.cache import file_digest
from erofs_edge.sources.debian.mirror import Mirror
from erofs_edge.sources.debian.supply import LOCAL, Supply
from erofs_edge.writing import scratch_folder

TIMEOUT = 900  # seconds for one apt call
HELPER = "/usr/lib/apt/apt-helper"
UNKNOWN = r"Unable to locate package (\S+)|Package '?([^'\s]+)'? has no installation candidate"
LACKS = r"repository '(\S+) (\S+) \w+' doesn't have the component '(\S+)'"
LATE = "non-free-firmware"
"""a component that Debian 11 and older do not have: it is requested by default"""
REASONS = 4  # number shown in an error
COMPONENTS = ("main", "non-free-firmware")
"""boards need the second for what vendors supply without source (raspi-firmware); nothing else is in it"""


class Apt:
    """An up-to-date package index of one suite and architecture. Use `open_apt` to get one."""

    def __init__(
        self,
        folder: Path,
        suite: str,
        arch: str,
        supply: Supply | None = None,
        elsewhere: Callable[[list[str]], dict[str, str]] = lambda names: {},
    ) -> None:
        self._folder = folder
        self._suite, self._arch = suite, arch
        self._elsewhere = elsewhere
        self._archives = supply.archives if supply is not None else {}
        debs = supply.debs if supply is not None else ()
        self._own = {fields["Package"]: _local_package(path, fields) for path, fields in debs}
        self.local_names = sorted(self._own)
        """packages that are files on this machine"""

    def closure(self, names: Iterable[str]) -> list[LockedPackage]:
        """The requested packages and all their dependencies (no recommends), sorted by name.

        Raises SourceError with apt's reason, shortened, if a name is unknown or dependencies conflict.
        """
        specs = [f"{name}={self._own[name].version}" if name in self._own else name for name in names]
        text = self._run("apt-get", "install", "-s", "-y", *specs)
        chosen = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", text, re.M)
        return self.describe(f"{name}={version}" for name, version in chosen)

    def describe(self, specs: Iterable[str]) -> list[LockedPackage]:
        """`name` or `name=version` as listed in the index, without dependencies, sorted by name."""
        wanted = sorted(specs)
        if not wanted:
            return []
        found: dict[str, LockedPackage] = {}
        strangers = self._strangers()
        for stanza in self._run("apt-cache", "show", "--no-all-versions", *wanted).split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.M))
            if "Filename" in fields:
                known = strangers.get(fields["SHA256"])
                found.setdefault(fields["Package"], self._locked(fields, known))
        # apt reports only one of two packages with equal name and version: the file takes precedence
        found |= {name: own for name, own in self._own.items() if name in found and found[name].version == own.version}
        names = [spec.split("=")[0].split(":")[0] for spec in wanted]
        if missing := [name for name in names if name not in found]:
            raise self._no_such(missing)
        return [found[name] for name in sorted(set(names))]

    def has(self, name: str) -> bool:
        """Whether a package of that name can be installed."""
        return re.search(r"^  Candidate: [^(\s]", self._run("apt-cache", "policy", name), re.M) is not None

    def download(self, names: Iterable[str], folder: Path) -> list[Path]:
        """Download `names` and all their dependencies into a folder; return the .deb files, sorted by name."""
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
        return self._done(program, *args).stdout

    def _done(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
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
            text = done.stderr + "\n" + done.stdout
            if unknown := re.findall(UNKNOWN, text):
                raise self._no_such(sorted({name for pair in unknown for name in pair if name}))
            raise _failure(args[0], text)
        return done

    def _no_such(self, names: list[str]) -> SourceError:
        """What is known about packages missing from the index: perhaps another architecture has them."""
        others = {name.split(":")[0].split("=")[0] for name in names} - set(self.local_names)
        with contextlib.suppress(ErofsEdgeError):
            if elsewhere := self._elsewhere(sorted(others)):
                words = ", ".join(f"{name} (there is one for {arch})" for name, arch in sorted(elsewhere.items()))
                return SourceError(f"no package for {self._arch} in {self._suite}: {words}", hint="leave it out")
        return SourceError(
            f"no such package: {' '.join(names)} (for {self._arch} in {self._suite})",
            hint="check the name of the package and the suite",
        )

    def _strangers(self) -> dict[str, str]:
        """sha256 → archive of every package that does not come from the mirror."""
        found: dict[str, str] = {}
        uris = {one.uri.rstrip("/"): name for name, one in self._archives.items() if one.uri is not None}
        if uris:
            form = ["--format", "$(REPO_URI) $(FILENAME)", "Created-By: Packages"]
            for line in self._run("apt-get", "indextargets", *form).splitlines():
                uri, _, file = line.partition(" ")
                if name := uris.get(uri.rstrip("/")):
                    text = self._run(HELPER, "cat-file", file)
                    found |= dict.fromkeys(re.findall(r"^SHA256: (\w{64})$", text, re.M), name)
        return found

    def _locked(self, fields: dict[str, str], archive: str | None) -> LockedPackage:
        # Debian keeps security updates under a pool of their own, so the path reveals the archive
        path = fields["Filename"].removeprefix("./")
        return LockedPackage(
            name=fields["Package"],
            version=fields["Version"],
            arch=fields["Architecture"],
            archive=archive or ("debian-security" if path.startswith("pool/updates/") else "debian"),
            path=path,
            size=int(fields["Size"]),
            sha256=fields["SHA256"],
        )

    def _update(self) -> None:
        said = self._done("apt-get", "update").stderr
        for archive, suite, component in re.findall(LACKS, said):
            if component != LATE:
                raise SourceError(
                    f"{archive}, suite {suite}, has no component '{component}'",
                    hint="check `components` of the manifest, and those of its `archives`",
                )
        if not any((self._folder / "lists").glob("*_Packages*")):
            raise MirrorError("the mirror gave no package index", hint="check the suite's name and the network")


@contextlib.contextmanager
def open_apt(
    mirror: Mirror,
    suite: str,
    arch: str,
    *,
    pockets: Iterable[str] = ("", "-updates", "-security"),
    supply: Supply | None = None,
    other: str | None = "amd64",
) -> Iterator[Apt]:
    """An `Apt` with fresh indexes of suite + pockets; its folder is removed when the block ends.

    `arch` is a Debian architecture; `other` one whose index is read to explain why a package is missing. A pocket whose
    archive the mirror lacks is left out; sid has none. `supply` adds archives and package files.
    Raises ToolError if the host has no apt, MirrorError if nothing can be reached or verified.
    """
    for tool in ("apt-get", "apt-cache"):
        if not shutil.which(tool):
            raise ToolError(f"{tool} not found", hint="package resolution needs a Debian-like host: Debian 12 or newer")
    pockets = ("",) if suite in ("sid", "unstable") else tuple(pockets)

    def elsewhere(names: list[str]) -> dict[str, str]:
        if other is None or other == arch:
            return {}
        remote = dataclasses.replace(supply, debs=()) if supply is not None else None
        with open_apt(mirror, suite, other, pockets=pockets, supply=remote, other=None) as apt:
            return {name: other for name in names if apt.has(name)}

    with scratch_folder("apt") as folder:
        for sub in ("lists/partial", "archives/partial", "none", "log", "local"):
            (folder / sub).mkdir(parents=True)
        (folder / "status").touch()
        lines = []
        components = " ".join(supply.components if supply is not None else COMPONENTS)
        for pocket in pockets:
            archive = "debian-security" if pocket == "-security" else "debian"
            if archive in mirror.archives:
                options = f"arch={arch} signed-by={mirror.keyring}"
                lines.append(f"deb [{options}] {mirror.archives[archive]} {suite}{pocket} {components}\n")
        if supply is not None:
            lines += _further(folder, mirror, arch, supply)
        (folder / "sources.list").write_text("".join(lines))
        (folder / "apt.conf").write_text(_configuration(folder, arch, check_dates=not mirror.pinned))
        apt = Apt(folder, suite, arch, supply, elsewhere)
        apt._update()
        yield apt


def _further(folder: Path, mirror: Mirror, arch: str, supply: Supply) -> list[str]:
    """Lines of sources.list for a supply; the files that they need are put into the folder."""
    lines = []
    preferences = []
    for name, one in supply.archives.items():
        key = mirror.keyring
        if one.key is not None:
            data = Path(one.key).read_bytes()
            # apt distinguishes the two formats by the file's name
            key = folder / f"{name}.{'asc' if data.lstrip().startswith(b'-----BEGIN') else 'gpg'}"
            key.write_bytes(data)
        uri = one.uri or mirror.uri("debian", "").rstrip("/")
        lines.append(f"deb [arch={arch} signed-by={key}] {uri} {' '.join((one.suite, *one.components))}\n")
        if one.uri is None:
            # backports declare themselves as not to be installed unless requested
            preferences.append(f"Package: *\nPin: release n={one.suite}\nPin-Priority: 500\n")
    (folder / "preferences").write_text("\n".join(preferences))
    stanzas = []
    for number, (path, fields) in enumerate(supply.debs):
        copy = folder / "local" / f"{number}.deb"
        copy.symlink_to(path)
        text = "".join(f"{key}: {value.lstrip()}\n" for key, value in fields.items() if key != "Filename")
        digest = f"Size: {path.stat().st_size}\nSHA256: {file_digest(path)}\n"
        stanzas.append(f"{text}Filename: ./{copy.name}\n{digest}")
    if stanzas:
        (folder / "local/Packages").write_text("\n".join(stanzas))
        lines.append(f"deb [arch={arch} trusted=yes] file:{folder}/local ./\n")
    return lines


def _local_package(path: Path, fields: Mapping[str, str]) -> LockedPackage:
    return LockedPackage(
        name=fields["Package"],
        version=fields["Version"],
        arch=fields["Architecture"],
        archive=LOCAL,
        path=path.name,
        size=path.stat().st_size,
        sha256=file_digest(path),
    )


def _failure(verb: str, text: str) -> SourceError:
    """apt's own message, shortened to what explains the failure."""
    if verb == "update":
        lines = [" ".join(line.split()) for line in text.split("\n") if re.match(r"\s*(E:|W: GPG|Err:)", line)]
        lines = [line for line in lines if "index files failed to download" not in line]  # the others list them
        reason = "; ".join(line.removeprefix("E: ") for line in lines[:REASONS]) or text.strip()[-300:]
        hint = "check the network, the host's apt sources, or set EROFS_EDGE_MIRROR"
        if re.search(r"Splitting up .* failed|No space left", text):  # apt then reports the index as unsigned
            hint = "is there space for temporary files (TMPDIR)? Free some, then run the command again"
        return MirrorError(f"the package index cannot be fetched or verified: {reason}", hint=hint)
    # apt up to 2.9: " app : Depends: lib (>= 4) but 3 is to be installed", with more reasons on the lines below;
    # apt 3: numbered steps that lead to a contradiction
    head = r"^ (\S+) : (.*(?:\n {3,}.*)*)$"
    reasons = [
        f"{name}: {' '.join(line.split())}" for name, body in re.findall(head, text, re.M) for line in body.split("\n")
    ]
    reasons = reasons or [" ".join(line.split()) for line in re.findall(r"^ +\d+\. (.*)$", text, re.M)]
    reasons = reasons or [line.strip() for line in re.findall(r"^E: (.*)$", text, re.M)]
    more = f"; and {len(reasons) - REASONS} more" if len(reasons) > REASONS else ""
    reason = "; ".join(one[:200] for one in reasons[:REASONS]) + more or text.strip()[-300:]
    return SourceError(f"apt cannot resolve the packages: {reason}")


def _configuration(folder: Path, arch: str, *, check_dates: bool) -> str:
    # read after the host's own files, so that proxies and credentials are kept and hooks removed. Without the error
    # mode, apt continues without the index of an archive that it cannot reach, and would resolve to older packages
    return f"""
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "{folder}/none";
Dir::Etc::preferences "{folder}/preferences";
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
APT::Update::Error-Mode "any";
#clear DPkg;
"""
