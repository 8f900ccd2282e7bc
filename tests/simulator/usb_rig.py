# SPDX-License-Identifier: Apache-2.0
"""Both ends of a USB cable inside the machine of test_usb_gadget.py, which has the files of this one.

usage: python usb_rig.py device FUNCTIONFS | host GADGET FASTBOOT

`device` is a simulated fastboot device behind FunctionFS; it tells the sha256 of a partition after each flash. `host`
flashes it with our programs, and with Google's. Lines for the test begin with "told: ", an object of JSON each.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from erofs_edge.errors import ErofsEdgeError
from erofs_edge.flash.fastboot import Fastboot
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.fastboot import FastbootDevice
from erofs_edge.simulator.fastboot_usb import serve_functionfs
from erofs_edge.simulator.images import Sizes, disk_image
from erofs_edge.simulator.partitions import DiskPartitions
from erofs_edge.transport.fastboot.link import open_device

MIB = 1 << 20
SERIAL = "EDGE0001"
MEMORY = 2 * MIB  # bytes of the device's buffer: an image of 5 MiB comes in pieces
SIZES = Sizes(data=8 * MIB)
SIZE = 5 * MIB + 4096 * 3
WORK = Path("/run/work")


def tell(**what: object) -> None:
    """One line, by one write, so that no other program's text gets into it."""
    os.write(1, f"\ntold: {json.dumps(what)}\n".encode())


class Telling(FastbootDevice):
    """Tells what a partition holds after a flash; its own view, not the client's."""

    def hear(self, message: bytes) -> list[bytes]:
        flashing = not self.missing and message.startswith(b"flash:")
        answers = super().hear(message)
        name = message.decode().partition(":")[2] if flashing else ""
        if name in self.partitions:
            tell(held=hashlib.sha256(self.partitions[name][:SIZE]).hexdigest(), name=name)
        return answers


def device(folder: Path) -> None:
    """Serves until it is killed."""
    size = disk_image(WORK / "blank", 1, SIZES).stat().st_size
    fake = Telling(DiskPartitions(SimulatedDisk.of_size(size)), memory=MEMORY)
    with serve_functionfs(fake, folder):
        tell(device="ready")
        threading.Event().wait()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=400)


def refusal(action: Callable[[], object]) -> str:
    """What an error says."""
    try:
        action()
    except ErofsEdgeError as error:
        return f"{error.where}: {error.message}: {error.hint}"
    return "nothing was refused"


def host(gadget: Path, google: str) -> None:
    """Each of the steps tells what came of it. Two are by our program, the others in this process, which is faster."""
    edge, image = str(Path(sys.executable).with_name("erofs-edge")), WORK / "image"
    disk = str(disk_image(WORK / "v1.img", 1, SIZES))
    whole = run(edge, "flash", disk, "--to", "fastboot+usb://", "--yes", "--json")
    tell(whole=json.loads(whole.stdout) if not whole.returncode else whole.stderr[-400:])
    for seed, words in enumerate(([edge, "fastboot", "-s", "usb"], [google, "-s", SERIAL, "-S", str(MEMORY)])):
        image.write_bytes(random.Random(seed).randbytes(SIZE))
        done = run(*words, "flash", "data", str(image))
        tell(flash=done.returncode, sha256=hashlib.sha256(image.read_bytes()).hexdigest(), said=done.stderr[-300:])
    listed = re.findall(r"^\(bootloader\) ([^ ]+): (.*)$", run(google, "-s", SERIAL, "getvar", "all").stderr, re.M)
    with open_device(f"usb:{SERIAL}") as opened:
        fastboot = Fastboot(opened)
        tell(variables=fastboot.variables(), theirs=dict(listed))
        tell(fetched=b"".join(fastboot.fetch_partition("data"))[:SIZE] == image.read_bytes())
        tell(second=refusal(lambda: open_device("usb")), other=refusal(lambda: open_device("usb:EDGE0002")))
    rates(image, google)
    with open_device("usb") as opened:
        fastboot = Fastboot(opened)
        fastboot.variable("product")
        (gadget / "UDC").write_text("\n")  # unplugged
        tell(unplugged=refusal(lambda: fastboot.variable("product")))


def rates(image: Path, google: str) -> None:
    """Seconds that each client needs to put MEMORY bytes into the device, in turn; Google's tells its own."""
    image.write_bytes(random.Random(3).randbytes(MEMORY))
    seconds: dict[str, list[float]] = {"ours": [], "google": []}
    for _ in range(3):
        with open_device("usb") as opened:
            fastboot = Fastboot(opened)
            fastboot.variable("product")
            started = time.monotonic()
            fastboot.stage(image)
            seconds["ours"].append(time.monotonic() - started)
        said = run(google, "-s", SERIAL, "stage", str(image)).stderr
        seconds["google"] += map(float, re.findall(r"^Sending .*OKAY \[ *([\d.]+)s\]", said, re.M))
    tell(seconds=seconds)


def main() -> None:
    """See the usage."""
    role, *words = sys.argv[1:]
    WORK.mkdir(exist_ok=True)
    if role == "device":
        device(Path(words[0]))
    else:
        host(Path(words[0]), words[1])
    tell(done=role)


if __name__ == "__main__":
    main()
