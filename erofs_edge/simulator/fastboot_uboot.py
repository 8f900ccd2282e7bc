# SPDX-License-Identifier: Apache-2.0
"""A simulated U-Boot in fastboot mode that obeys `oem run`: the shell, as far as flashing uses it.

As in U-Boot 2025.01, commands and answers longer than 64 bytes are cut, `oem run` returns only OKAY or FAIL, `getvar`
answers from the environment first, and the disk does not exist until something has looked for its partitions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from erofs_edge.simulator.fastboot import FastbootDevice
from erofs_edge.simulator.partitions import DiskPartitions

BASE = 0x4800_0000
COMMAND_MAX = RESPONSE_MAX = 64
SECTOR = 512
_LOOP = re.compile(r"for (\w+) in (.*?);do (.*?);done(?:;|$)(.*)", re.DOTALL)


@dataclass(slots=True)
class UBootFastboot(FastbootDevice):
    """A simulated U-Boot in fastboot mode.

    environment  variables; `fastboot.edge-buffer` and `fastboot.edge-disk` are its consent
    ram          memory filled by `mmc read`, at BASE
    reads        number of sectors read
    """

    environment: dict[str, str] = field(
        default_factory=lambda: {"fastboot.edge-buffer": f"{BASE:x}", "fastboot.edge-disk": "0"}
    )
    ram: bytearray = field(default_factory=lambda: bytearray(8 << 20))
    reads: int = 0
    probed: bool = False

    def hear(self, message: bytes) -> list[bytes]:
        answers = super(UBootFastboot, self).hear(message if self._expected else message[:COMMAND_MAX])
        return [answer[: RESPONSE_MAX - 1] for answer in answers]

    def _known(self) -> dict[str, str]:
        named = {key.removeprefix("fastboot."): value for key, value in self.environment.items() if "." in key}
        return super(UBootFastboot, self)._known() | named

    def _actions(self) -> Mapping[str, Callable[[str], list[bytes]]]:
        return {**super(UBootFastboot, self)._actions(), "oem run": self._oem_run}

    def _oem_run(self, text: str) -> list[bytes]:
        return [b"OKAY"] if self._shell(text) else [b"FAIL"]

    def _shell(self, text: str) -> bool:
        """Whether the last command succeeded."""
        loop = _LOOP.match(text)
        if loop:
            name, words, body, rest = loop.groups()
            for word in self._expanded(words).split():
                self.environment[name] = word
                self._shell(body)
            return self._shell(rest) if rest else True
        good = True
        for statement in _divided(text, ";"):
            good = all(self._command(step) for step in _divided(statement, "&&"))
        return good

    def _command(self, text: str) -> bool:
        words: list[str] = []
        for quoted, plain in re.findall(r"'([^']*)'|([^'\s]+)", text):
            words += [quoted] if not plain else self._expanded(plain).split()
        actions: dict[str, Callable[..., bool]] = {
            "setenv": self._setenv,
            "run": self._run,
            "mmc": self._mmc,
            "part": self._part,
            "hash": self._hash,
            "setexpr": self._setexpr,
            "setexpr.q": self._word,
        }
        action = actions.get(words[0] if words else "")
        try:
            return action is not None and action(*words[1:])
        except (TypeError, ValueError, KeyError, IndexError, OSError):
            return False

    def _expanded(self, text: str) -> str:
        return re.sub(r"\$\{?([\w.#-]+?)\}?(?![\w.#-])", lambda match: self.environment.get(match[1], ""), text)

    def _setenv(self, name: str, *values: str) -> bool:
        self.environment.pop(name, None)
        if values:
            self.environment[name] = " ".join(values)
        return True

    def _run(self, *names: str) -> bool:
        return all(self._shell(self.environment[name]) for name in names)

    def _mmc(self, verb: str, *words: str) -> bool:
        if verb in ("dev", "rescan"):
            return self.probed and words == (("0",) if verb == "dev" else ())
        address, first, count = (int(word, 16) for word in words)
        data = self._disk().disk.read(first * SECTOR, count * SECTOR)
        if not self.probed or verb != "read" or len(data) != count * SECTOR:
            return False
        self.reads += count
        self.ram[address - BASE : address - BASE + len(data)] = data
        return True

    def _part(self, verb: str, kind: str, number: str, name: str = "", variable: str = "") -> bool:
        self.probed = True
        start = self._disk()[name].start
        return verb == "start" and kind == "mmc" and number == "0" and self._setenv(variable, f"{start // SECTOR:x}")

    def _hash(self, name: str, address: str, length: str, variable: str) -> bool:
        at = int(address, 16) - BASE
        return self._setenv(variable, hashlib.new(name, self.ram[at : at + int(length, 16)]).hexdigest())

    def _setexpr(self, name: str, left: str, operation: str, right: str) -> bool:
        a, b = int(left, 16), int(right, 16)
        return self._setenv(name, f"{a * b if operation == '*' else a + b:x}")

    def _word(self, name: str, pointer: str) -> bool:
        at = int(pointer.removeprefix("*"), 16) - BASE
        return self._setenv(name, f"{int.from_bytes(self.ram[at : at + 8], 'little'):x}")

    def _disk(self) -> DiskPartitions:
        if not isinstance(self.partitions, DiskPartitions):
            raise KeyError("this device has no disk")
        return self.partitions


def _divided(text: str, mark: str) -> list[str]:
    """Split at a mark outside of quotes."""
    parts, quoted = [""], False
    at = 0
    while at < len(text):
        if not quoted and text.startswith(mark, at):
            parts.append("")
            at += len(mark)
            continue
        quoted ^= text[at] == "'"
        parts[-1] += text[at]
        at += 1
    return [part.strip() for part in parts if part.strip()]
