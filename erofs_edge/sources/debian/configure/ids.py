# SPDX-License-Identifier: Apache-2.0
"""Assign ids to users and groups.

The numbers of system accounts requested by packages are not fixed by Debian: they depend on the order in which packages
were configured. Here they come from the lock, which `assign_ids` fills. A name that was ever pinned keeps its number
for good, so it still owns its files on the data partition. A new name gets the next free number in Debian's way: from
999 downwards for sysusers.d, from 100 upwards for adduser's groups, from 1000 upwards for people (manifest users with a
login shell).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import System, User
from erofs_edge.sources.debian.configure.accounts import (
    AGEING,
    LOCKED,
    NOLOGIN,
    Account,
    Accounts,
    Group,
    Ids,
    base_accounts,
)
from erofs_edge.sources.debian.configure.sysusers import Request, read_sysusers
from erofs_edge.tree import FileTree

SYSTEM_IDS = range(999, 99, -1)
ADDUSER_IDS = range(100, 1000)
PERSON_IDS = range(1000, 60000)
NO_LOGIN_SHELLS = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false")
EXPIRED = "::::1:"
"""shadow's fields for an account locked by 'u!': expired on day 1 of 1970"""

Position = Callable[[str], str]
"""a dotted key of the manifest → file:line:column"""


@dataclass(slots=True)
class _Numbers:
    """The accounts so far, the pinned numbers, and whether new numbers may be chosen."""

    accounts: Accounts
    users: dict[str, int]
    groups: dict[str, int]
    allocate: bool
    position: Position

    def user(self, name: str, candidates: Iterable[int], *, own_group: bool) -> int:
        """The uid of a name: pinned, else that of its own group, else the first free candidate."""
        if name not in self.users:
            group = self.accounts.groups.get(name)
            preferred = [group.gid] if group is not None and own_group else []
            self.users[name] = self._choose("user", name, [*preferred, *candidates])
        return self.users[name]

    def group(self, name: str, candidates: Iterable[int]) -> int:
        """The gid of a name: pinned, else the first candidate that is free as gid and as uid."""
        if name not in self.groups:
            self.groups[name] = self._choose("group", name, candidates)
        return self.groups[name]

    def _choose(self, kind: str, name: str, candidates: Iterable[int]) -> int:
        """A number that no other user or group has."""
        if not self.allocate:
            raise ManifestError(
                f"{kind} {name!r} has no id in the lock",
                hint="pin the ids of new system accounts: erofs-edge lock",
            )
        taken = {user.uid for user in self.accounts.users.values() if user.name != name}
        taken |= {number for other, number in self.users.items() if other != name}
        taken |= {group.gid for group in self.accounts.groups.values() if group.name != name}
        taken |= {number for other, number in self.groups.items() if other != name}
        number = next((n for n in candidates if n not in taken), None)
        if number is None:
            raise ManifestError(f"no free id is left for {kind} {name!r}")
        return number

    def check_uid(self, name: str, uid: int, key: str = "") -> None:
        """Raises ManifestError if another user has that number."""
        owner = self.accounts.uid_owner(uid)
        owner = owner or next((n for n, number in self.users.items() if number == uid and n != name), None)
        if owner is not None and owner != name:
            self._clash("user", name, uid, owner, key)

    def add_user(self, account: Account) -> None:
        """Add a user. Raises ManifestError if another one has its number."""
        self.check_uid(account.name, account.uid)
        self.accounts.users[account.name] = account

    def add_group(self, name: str, gid: int, key: str = "", password: str = LOCKED) -> None:
        """Add a group. Raises ManifestError if another one has its number."""
        owner = self.accounts.gid_owner(gid)
        owner = owner or next((n for n, number in self.groups.items() if number == gid and n != name), None)
        if owner is not None and owner != name:
            self._clash("group", name, gid, owner, key)
        self.accounts.groups[name] = Group(name, gid, password=password)

    def _clash(self, kind: str, name: str, number: int, owner: str, key: str) -> None:
        raise ManifestError(
            f"{kind} {name!r} and {kind} {owner!r} would both have id {number}",
            where=self.position(key) if key else None,
            hint="give one of them another id; ids in the lock never change",
        )


def assign_ids(
    tree: FileTree, system: System, pinned: Ids, *, adduser_groups: Sequence[str] = (), position: Position = str
) -> Ids:
    """The pins of the next lock: those of the old one, and one for each new account without a fixed number.

    `tree` has the packages' files (and the overlay's, if it has sysusers.d lines); `adduser_groups` are the groups that
    known package scripts create. Raises ManifestError if two names would share a number.
    """
    numbers = _Numbers(base_accounts(tree), dict(pinned.users), dict(pinned.groups), True, position)
    _build(numbers, tree, system, adduser_groups)
    return Ids(dict(sorted(numbers.users.items())), dict(sorted(numbers.groups.items())))


def build_accounts(
    tree: FileTree,
    system: System,
    pinned: Ids,
    *,
    adduser_groups: Sequence[str] = (),
    configured: bool = False,
    position: Position = str,
) -> Accounts:
    """All accounts of a system, with the numbers from the lock; of a `configured` one, those in its /etc and whatever
    is missing there. Raises ManifestError for a name that the lock lacks."""
    before = base_accounts(tree, configured=configured)
    numbers = _Numbers(before, dict(pinned.users), dict(pinned.groups), False, position)
    _build(numbers, tree, system, adduser_groups)
    return numbers.accounts


def _build(numbers: _Numbers, tree: FileTree, system: System, adduser_groups: Sequence[str]) -> None:
    """Fixed numbers come first, so that a chosen number never takes one that is required elsewhere."""
    requests = read_sysusers(tree)
    ranges = [r.range for r in requests if r.kind == "r"]
    free = sorted({n for low, high in ranges for n in range(low, high + 1)}, reverse=True) if ranges else SYSTEM_IDS
    _fixed_manifest(numbers, system)
    for request in sorted(requests, key=lambda r: r.kind != "g"):
        _sysusers_group(numbers, request, _owner(tree, request), ())
    for request in requests:
        _sysusers_user(numbers, request, _owner(tree, request), ())
    for request in sorted(requests, key=lambda r: r.kind != "g"):
        _sysusers_group(numbers, request, None, free)
    for request in requests:
        _sysusers_user(numbers, request, None, free)
    for name in adduser_groups:
        if name not in numbers.accounts.groups:
            numbers.add_group(name, numbers.group(name, ADDUSER_IDS), password="!")
    _manifest(numbers, system)
    for request in requests:
        if request.kind == "m":
            _member(numbers, request)


def _owner(tree: FileTree, request: Request) -> tuple[int, int] | None:
    """The numbers that a request fixes: its own, or those of the owner of a path."""
    if request.owner_of and (node := tree.get(request.owner_of, follow=True)) is not None:
        return node.uid, node.gid
    if request.kind == "g" and request.gid is not None:
        return -1, request.gid
    if request.kind == "u" and request.uid is not None:
        return request.uid, request.uid if request.gid is None else request.gid
    return None


def _sysusers_group(numbers: _Numbers, request: Request, fixed: tuple[int, int] | None, free: Iterable[int]) -> None:
    if request.kind != "g" or request.name in numbers.accounts.groups:
        return
    if fixed is not None:
        numbers.add_group(request.name, fixed[1])
    elif free:
        numbers.add_group(request.name, numbers.group(request.name, free))


def _sysusers_user(numbers: _Numbers, request: Request, fixed: tuple[int, int] | None, free: Iterable[int]) -> None:
    if request.kind != "u" or request.name in numbers.accounts.users or (fixed is None and not free):
        return
    name, groups = request.name, numbers.accounts.groups
    if request.group:
        if request.group not in groups:
            raise ManifestError(
                f"user {name!r} needs the primary group {request.group!r}, which nothing creates", where=request.where
            )
        uid = fixed[0] if fixed is not None else numbers.user(name, free, own_group=False)
        gid = groups[request.group].gid
    elif fixed is not None:
        uid, gid = fixed
        if numbers.accounts.gid_owner(gid) is None:
            numbers.add_group(name, gid)
    else:
        uid = numbers.user(name, free, own_group=True)
        if name not in groups:
            numbers.groups.setdefault(name, uid)
            numbers.add_group(name, numbers.groups[name])
        gid = groups[name].gid
    ageing = EXPIRED if request.expired else ":::::"
    home, shell = request.home or "/", request.shell or NOLOGIN
    numbers.add_user(Account(name, uid, gid, request.gecos, home, shell, LOCKED, ageing))


def _member(numbers: _Numbers, request: Request) -> None:
    for kind, names in (("user", numbers.accounts.users), ("group", numbers.accounts.groups)):
        wanted = request.name if kind == "user" else request.group
        if wanted not in names:
            raise ManifestError(f"{kind} {wanted!r} does not exist: no membership can be set", where=request.where)
    numbers.accounts.join(request.name, request.group)


def _fixed_manifest(numbers: _Numbers, system: System) -> None:
    """Manifest groups and users with fixed numbers; users that base-passwd has are changed later."""
    for name, gid in system.groups.items():
        if gid is None:
            continue
        known = numbers.accounts.groups.get(name)
        if known is not None and known.gid != gid:
            raise ManifestError(
                f"group {name!r} always has id {known.gid} in Debian", where=numbers.position(f"groups.{name}")
            )
        numbers.groups.pop(name, None)
        numbers.add_group(name, gid, f"groups.{name}", "!")
    for name, user in system.users.items():
        known_user = numbers.accounts.users.get(name)
        if user.uid is None:
            continue
        if known_user is not None:
            if known_user.uid != user.uid:
                raise ManifestError(
                    f"user {name!r} always has id {known_user.uid} in Debian",
                    where=numbers.position(f"users.{name}.uid"),
                )
            continue
        numbers.users.pop(name, None)
        _new_user(numbers, name, user, user.uid)


def _manifest(numbers: _Numbers, system: System) -> None:
    """The rest of the manifest's accounts: new ones without numbers, changes, memberships."""
    accounts = numbers.accounts
    for name, gid in system.groups.items():
        if gid is None and name not in accounts.groups:
            numbers.add_group(name, numbers.group(name, ADDUSER_IDS), f"groups.{name}", "!")
    for name, user in system.users.items():
        if name in accounts.users:
            _change_user(accounts, name, user)
        else:
            candidates: Iterable[int] = PERSON_IDS if is_person(user) else SYSTEM_IDS
            own = user.gid is None
            _new_user(numbers, name, user, numbers.user(name, candidates, own_group=own))
        for group in user.groups:
            if group not in accounts.groups:
                raise ManifestError(
                    f"user {name!r} is to be in group {group!r}, which does not exist",
                    where=numbers.position(f"users.{name}.groups"),
                    hint="name it under `groups:`",
                )
            accounts.join(name, group)


def _new_user(numbers: _Numbers, name: str, user: User, uid: int) -> None:
    key = f"users.{name}"
    numbers.check_uid(name, uid, key)
    gid = user.gid
    if gid is None:
        if name not in numbers.accounts.groups:
            pinned = numbers.groups.get(name, uid)
            numbers.add_group(name, pinned, key, "!")
        gid = numbers.accounts.groups[name].gid
    elif numbers.accounts.gid_owner(gid) is None:
        numbers.add_group(name, gid, f"{key}.gid", "!")
    person = is_person(user)
    password = user.password if user.password is not None else ("*" if person else LOCKED)
    home = user.home or (f"/home/{name}" if person else "/nonexistent")
    shell = user.shell or ("/bin/bash" if person else NOLOGIN)
    numbers.add_user(Account(name, uid, gid, user.gecos, home, shell, password, AGEING))


def _change_user(accounts: Accounts, name: str, user: User) -> None:
    changes: dict[str, str | int] = {}
    for field, value in (("gid", user.gid), ("home", user.home), ("shell", user.shell), ("password", user.password)):
        if value is not None:
            changes[field] = value
    if user.gecos:
        changes["gecos"] = user.gecos
    accounts.update(name, **changes)


def is_person(user: User) -> bool:
    """Whether a manifest user is someone who logs in: by its shell if given, else by whether it has a way to log in."""
    if user.shell is not None:
        return user.shell not in NO_LOGIN_SHELLS
    return user.password not in (None, "*", "!", LOCKED) or bool(user.ssh_keys)
