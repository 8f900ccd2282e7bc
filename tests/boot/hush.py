# SPDX-License-Identifier: Apache-2.0
"""A model of U-Boot's hush shell and commands, as far as the boot script uses them, with a disk in memory.

Words, quoting, expansion, if/for/while, `&&` and `||` behave as in U-Boot 2025.01 (common/cli_hush.c): the result of an
expansion is split at blanks outside double quotes and never parsed again. Numbers are hexadecimal. Only commands that
Debian's stock builds for qemu_arm64 and rpi_arm64 have exist.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from erofs_edge.boot.fdt import PROP, PROP_HEAD_SIZE, tags
from erofs_edge.errors import FormatError

SECTOR = 512


class Stop(Exception):
    """The machine has started something, hangs, or lost power: the script does not continue."""


@dataclass
class Machine:
    """partitions: name → (first sector, sectors). starts: whether a loaded FIT boots. power: writes left."""

    disk: bytearray
    partitions: dict[str, tuple[int, int]]
    starts: Callable[[bytes], bool]
    storage: str = "virtio"
    device: str = "0"
    power: int | None = None
    env: dict[str, str] = field(default_factory=lambda: {"fdtcontroladdr": "7e66deb0"})
    memory: dict[int, bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    booted: tuple[str, ...] | None = None

    def run(self, script: str) -> None:
        """Run a script until the machine starts something, stops or loses power."""
        with contextlib.suppress(Stop):
            _Runner(self, list(_tokens(script))).all()

    # ---- the shell

    def expand(self, raw: str) -> list[str]:
        """Return the words that a raw word expands to."""
        fields: list[str] = [""]
        quoted = False
        for piece in re.findall(r"'[^']*'|\"[^\"]*\"|\$\{\w+\}|\$\w+|.", raw, re.S):
            if piece[0] == "'":
                quoted, fields[-1] = True, fields[-1] + piece[1:-1]
            elif piece[0] == '"':
                quoted, fields[-1] = True, fields[-1] + re.sub(r"\$\{(\w+)\}", self._value, piece[1:-1])
            elif piece[0] == "$":
                first, *rest = re.sub(r"\$\{?(\w+)\}?", self._value, piece).split(" ")
                fields[-1] += first
                fields += rest
            else:
                fields[-1] += piece
        return fields if quoted else [word for word in fields if word]

    def _value(self, match: re.Match[str]) -> str:
        return self.env.get(match[1], "")

    # ---- the commands: True means success

    def command(self, words: list[str]) -> bool:
        name, *arguments = words
        return bool(getattr(self, f"do_{name.removesuffix('.b')}")(*arguments))

    def do_echo(self, *words: str) -> bool:
        self.said.append(" ".join(words))
        return True

    def do_true(self) -> bool:
        return True

    def do_sleep(self, seconds: str) -> bool:
        raise Stop

    def do_setenv(self, name: str, *words: str) -> bool:
        self.env.pop(name, None)
        if words:
            self.env[name] = " ".join(words)
        return True

    def do_run(self, name: str) -> bool:
        return _Runner(self, list(_tokens(self.env[name]))).all() if name in self.env else False

    def do_test(self, *words: str) -> bool:
        if words[0] in ("-n", "-z"):
            return (words[1:] not in ((), ("",))) == (words[0] == "-n")
        left, operator, right = words
        if operator == "=":
            return left == right
        return _decimal(left) > _decimal(right) if operator == "-gt" else _decimal(left) >= _decimal(right)

    def do_setexpr(self, name: str, left: str, operator: str, right: str) -> bool:
        work = {"+": int.__add__, "-": int.__sub__, "/": int.__floordiv__}[operator]
        self.env[name] = format(work(_hexadecimal(left), _hexadecimal(right)), "x")
        return True

    def do_itest(self, left: str, operator: str, right: str) -> bool:
        assert operator == "-le"
        return int(left, 16) <= int(right, 16)

    def do_part(self, action: str, storage: str, device: str, name: str, variable: str) -> bool:
        assert (action, storage) == ("start", self.storage)
        assert device == self.device
        if name not in self.partitions:
            return False
        self.env[variable] = format(self.partitions[name][0], "x")
        return True

    def do_virtio(self, action: str, *arguments: str) -> bool:
        return action == "scan" or self._transfer(action, *arguments)

    def do_mmc(self, action: str, *arguments: str) -> bool:
        if action == "dev":
            return arguments == (self.device,)
        return self._transfer(action, *arguments)

    def _transfer(self, action: str, address: str, block: str, count: str) -> bool:
        start, length = int(block, 16) * SECTOR, int(count, 16) * SECTOR
        assert length, "U-Boot refuses to read nothing"
        if action == "read":
            self.reads.append((start, length))
            self.memory[int(address, 16)] = bytes(self.disk[start : start + length])
            return start + length <= len(self.disk)
        data = self.memory[int(address, 16)]
        assert (action, len(data)) == ("write", length)
        if self.power is not None:
            self.power -= 1
            if self.power < 0:
                self.disk[start : start + SECTOR] = b"\xff" * SECTOR
                raise Stop
        self.disk[start : start + length] = data
        return True

    def do_env(self, action: str, *arguments: str) -> bool:
        if action == "import":
            _c, address, size, *names = arguments
            raw = self.memory[int(address, 16)][: int(size, 16)]
            if struct.unpack("<I", raw[:4])[0] != zlib.crc32(raw[4:]):
                return False
            found = dict(e.decode().split("=", 1) for e in raw[4:].split(b"\0\0")[0].split(b"\0") if b"=" in e)
            self.env |= {name: found[name] for name in names if name in found}
            return True
        _c, _s, size, address, *names = arguments
        assert (action, _c, _s) == ("export", "-c", "-s")
        data = b"".join(f"{n}={self.env[n]}\0".encode() for n in sorted(names) if n in self.env)
        data = data.ljust(int(size, 16) - 4, b"\0")
        self.memory[int(address, 16)] = struct.pack("<I", zlib.crc32(data)) + data
        return True

    def do_fdt(self, action: str, *arguments: str) -> bool:
        if action == "addr":
            self.fdt = int(arguments[0], 16)
            return self.memory[self.fdt][:4] == b"\xd0\x0d\xfe\xed"
        tree = self.memory[self.fdt]
        if action == "header":
            assert (arguments[0], arguments[2]) == ("get", "totalsize")
            self.env[arguments[1]] = format(struct.unpack(">I", tree[4:8])[0], "x")
            return True
        what, variable, path, name = arguments
        assert action == "get"
        with contextlib.suppress(FormatError):
            for tag in tags(tree):
                if tag.kind == PROP and (tag.path, tag.name) == (path, name):
                    place = self.fdt + tag.start + PROP_HEAD_SIZE
                    values = {"addr": format(place, "x"), "size": format(len(tag.value), "x")}
                    self.env[variable] = values[what] if what in values else bytes(tag.value).rstrip(b"\0").decode()
                    return True
        return False

    def do_cp(self, source: str, target: str, count: str) -> bool:
        self.memory[int(target, 16)] = self._memory_at(source, count)
        return True

    def _memory_at(self, address: str, count: str) -> bytes:
        offset = int(address, 16) - self.fdt
        return self.memory[self.fdt][offset : offset + int(count, 16)]

    def do_booti(self, kernel: str, ramdisk: str, tree: str) -> bool:
        address, size = ramdisk.split(":")
        if self._memory_at(kernel, "4") != b"GOOD":
            return False
        self.booted = (kernel, self._memory_at(address, size).decode(), self.memory[int(tree, 16)].decode())
        raise Stop

    def do_bootm(self, *arguments: str) -> bool:
        if self.starts(self.memory[int(arguments[0].split("#")[0], 16)]):
            self.booted = arguments
            raise Stop
        return False


def _decimal(text: str) -> int:
    found = re.match(r"-?\d+", text)
    return int(found[0]) if found else 0


def _hexadecimal(text: str) -> int:
    assert not text.startswith("*"), "U-Boot would read memory at this address"
    found = re.match(r"[0-9a-fA-F]+", text)
    return int(found[0], 16) if found else 0


def _tokens(text: str) -> Iterator[str]:
    """Yield raw words and the operators ; && || (a line end is a ;)."""
    for token in re.findall(r"(?:'[^']*'|\"[^\"]*\"|[^\s;'\"&|])+|&&|\|\||;|\n", text):
        yield ";" if token == "\n" else token


class _Runner:
    """Runs a list of tokens once, front to back; skipped parts are walked through with `live` off."""

    def __init__(self, machine: Machine, tokens: list[str]) -> None:
        self.machine, self.tokens, self.at = machine, tokens, 0

    def all(self) -> bool:
        status = self._list(set(), True)
        assert self.at == len(self.tokens), f"unbalanced at {self.tokens[self.at :][:5]}"
        return status

    def _peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _take(self, *expected: str) -> str:
        token = self.tokens[self.at]
        assert not expected or token in expected, f"{token!r} where {expected} must be"
        self.at += 1
        return token

    def _list(self, ends: set[str], live: bool) -> bool:
        status = True
        while (token := self._peek()) is not None and token not in ends:
            if token == ";":
                self.at += 1
                continue
            status = self._chain(live)
        return status

    def _chain(self, live: bool) -> bool:
        status = self._simple(live)
        while self._peek() in ("&&", "||"):
            operator = self._take()
            status = self._simple(live and status) and status if operator == "&&" else self._or(live, status)
        return status

    def _or(self, live: bool, status: bool) -> bool:
        ran = self._simple(live and not status)
        return status or ran

    def _simple(self, live: bool) -> bool:
        token = self._peek()
        if token == "if":
            return self._if(live)
        if token == "for":
            return self._for(live)
        if token == "while":
            return self._while(live)
        words = []
        while (token := self._peek()) is not None and token not in (";", "&&", "||"):
            words += self.machine.expand(token) if live else [token]
            self.at += 1
        return self.machine.command(words) if live else True

    def _if(self, live: bool) -> bool:
        self._take("if")
        condition = self._list({"then"}, live)
        self._take("then")
        status = self._list({"else", "fi"}, live and condition)
        if self._take("else", "fi") == "else":
            other = self._list({"fi"}, live and not condition)
            status = status if condition else other
            self._take("fi")
        return status

    def _for(self, live: bool) -> bool:
        self._take("for")
        name = self._take()
        self._take("in")
        words: list[str] = []
        while self._peek() != ";":
            words += self.machine.expand(self._take()) if live else [self._take()]
        self._take(";")
        self._take("do")
        start, status = self.at, True
        for word in words if live else []:
            self.machine.env[name], self.at = word, start
            status = self._list({"done"}, True)
        if not (live and words):
            self._list({"done"}, False)
        self._take("done")
        return status

    def _while(self, live: bool) -> bool:
        self._take("while")
        condition = self._list({"do"}, live)
        self._take("do")
        self._list({"done"}, live and condition)
        self._take("done")
        return condition
