# SPDX-License-Identifier: Apache-2.0
"""The U-Boot script of a board: choose a slot, count the attempt, load its FIT, start it.

The algorithm and the variables are those of RAUC's U-Boot integration (BOOT_ORDER, BOOT_x_LEFT). They are stored in the
slot-state partition as two U-Boot environment blocks that `env import -c` reads: crc32 of the rest, little-endian, then
NAME=VALUE strings, each ended by NUL, padded with NUL (U-Boot include/env_internal.h `env_t` without redundancy flag;
cmd/nvedit.c).

The script trusts nothing on the disk. Only variables on a list of names are imported, a FIT is never read past the end
of its partition, and `bootm` verifies it before a byte of it runs. The chain u-boot-booti, for a U-Boot built without
FIT support, cannot verify: it only extracts the images. The language is that of U-Boot's hush shell; every command is
in Debian's stock builds of U-Boot 2025.01.
"""

from __future__ import annotations

from erofs_edge.disk import rollback
from erofs_edge.disk.slots import ATTEMPTS, ENV_OFFSETS, ENV_SIZE
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import Board, Partition, size_bytes

CONFIGURATION = "conf"
"""the name of the configuration node in the FIT"""

STAGE = "erofs-edge: stage u-boot slot "
REFUSED = "erofs-edge: slot does not start: "
TOO_OLD = "erofs-edge: slot is too old: "
NO_SLOT = "erofs-edge: no slot boots"

ROLLBACK_INDEX = "rollback-index"
"""the FIT's version, as in boot/fit.py"""


def boot_script(board: Board) -> str:
    """The script, one command per line, ASCII. For `/config/bootcmd` of the control tree or as boot.scr.

    Raises ManifestError if the board has no slotted 'fit' partition or its command line cannot be quoted.
    """
    fit_name, fit = _partition(board, "fit")
    state_name, _ = _partition(board, "slot-state")
    if not fit.slots:
        raise ManifestError(f"partition '{fit_name}' has no slots", hint="add `slots: [a, b]` to it")
    names = {slot.upper(): slot for slot in fit.slots}
    return "\n".join(
        [
            *_find_disk(board),
            *_read_minimum(board, state_name),
            *_read_state(board, state_name, list(names)),
            f"setenv ee_try '{_try_slot(board, fit_name, fit)}'",
            f"setenv ee_all '{_try_all(board, names)}'",
            "run ee_all",
            'if test -z "${ee_tried}"; then',
            f'echo "erofs-edge: no attempt is left on any slot, counting from {ATTEMPTS} again"',
            f'setenv BOOT_ORDER "{" ".join(names)}"',
            *(f"setenv BOOT_{name}_LEFT {ATTEMPTS}" for name in names),
            "run ee_all",
            "fi",
            f'echo "{NO_SLOT}"',
            "while true; do sleep 3600; done",
            "",
        ]
    )


def _partition(board: Board, content: str) -> tuple[str, Partition]:
    for name, partition in board.disk.partitions.items():
        if partition.content == content:
            return name, partition
    raise ManifestError(
        f"board '{board.board}' has no partition with content '{content}'",
        hint=f"the boot chain u-boot-fit needs one: `content: {content}`",
    )


def _find_disk(board: Board) -> list[str]:
    """Set ee_dev, U-Boot's number of the disk.

    U-Boot numbers mmc controllers as it finds them; a boot.scr gets ${devnum}, the one it was found on
    (boot/bootmeth_script.c).
    """
    number = [f"setenv ee_dev {board.boot.device:x}"]
    if board.boot.storage == "virtio":
        return ["virtio scan", *number]
    return [*number, 'test -n "${devnum}" && setenv ee_dev ${devnum}', "mmc dev ${ee_dev}"]


def _variables(names: list[str]) -> str:
    return " ".join(["BOOT_ORDER", *(f"BOOT_{name}_LEFT" for name in names)])


def _read_state(board: Board, partition: str, names: list[str]) -> list[str]:
    """Import the first copy whose crc is right; the copy that was *not* read is written first.

    So at least one of the two is intact at every moment, whichever was damaged before.
    """
    storage, sector = board.boot.storage, board.disk.sector
    first, second = (offset // sector for offset in ENV_OFFSETS)
    count, address = ENV_SIZE // sector, board.boot.load_address
    load = f"env import -c {address:x} {ENV_SIZE:x} {_variables(names)}"
    save = [
        f"env export -c -s {ENV_SIZE:x} {address:x} {_variables(names)}",
        f"{storage} write {address:x} ${{ee_other}} {count:x}",
        f"{storage} write {address:x} ${{ee_good}} {count:x}",
    ]
    return [
        *(f"setenv {name}" for name in _variables(names).split()),
        "setenv ee_save",
        f"if part start {storage} ${{ee_dev}} {partition} ee_misc; then",
        f"setenv ee_save '{'; '.join(save)}'",
        f"setexpr ee_good ${{ee_misc}} + {first:x}",
        f"setexpr ee_other ${{ee_misc}} + {second:x}",
        f"if {storage} read {address:x} ${{ee_good}} {count:x} && {load}; then true; else",
        "setenv ee_misc ${ee_good}; setenv ee_good ${ee_other}; setenv ee_other ${ee_misc}",
        f"if {storage} read {address:x} ${{ee_good}} {count:x} && {load}; then true; else",
        'echo "erofs-edge: both copies of the slot state are damaged, starting from defaults"',
        "fi; fi; fi",
        f'test -n "${{BOOT_ORDER}}" || setenv BOOT_ORDER "{" ".join(names)}"',
        *(f'test -n "${{BOOT_{name}_LEFT}}" || setenv BOOT_{name}_LEFT {ATTEMPTS}' for name in names),
    ]


def _read_minimum(board: Board, partition: str) -> list[str]:
    """Set ee_min, the least version that a FIT must have: the higher of the two records, 0 if there is none."""
    storage, sector, address = board.boot.storage, board.disk.sector, board.boot.load_address
    places = " ".join(f"{offset // sector:x}" for offset in rollback.OFFSETS)
    return [
        "setenv ee_min 0",
        f"if part start {storage} ${{ee_dev}} {partition} ee_misc; then",
        f"for ee_at in {places}; do",
        f"setenv {rollback.NAME}",
        "setexpr ee_block ${ee_misc} + ${ee_at}",
        f"if {storage} read {address:x} ${{ee_block}} {rollback.SIZE // sector:x} && "
        f"env import -c {address:x} {rollback.SIZE:x} {rollback.NAME}; then",
        f'if test "${{{rollback.NAME}}}" -gt "${{ee_min}}"; then setenv ee_min ${{{rollback.NAME}}}; fi',
        "fi; done; fi",
    ]


def _try_slot(board: Board, name: str, partition: Partition) -> str:
    """Load and start the FIT of ${ee_slot}; returns only if that failed.

    The FIT contains its data, so its header says how much to read. A forged header or partition table must not make
    U-Boot overwrite its own memory, so the size of the board's partition is the limit. A FIT without a version counts
    as version 0; `bootm` then verifies the same bytes that were read here.
    """
    storage, sector = board.boot.storage, board.disk.sector
    address, limit = board.boot.load_address, size_bytes(partition.size) // sector
    start = _bootm(board) if board.boot.chain == "u-boot-fit" else _booti(board)
    steps = [
        f"part start {storage} ${{ee_dev}} {name}_${{ee_slot}} ee_start",
        f"{storage} read {address:x} ${{ee_start}} 1",
        f"fdt addr {address:x}",
        "fdt header get ee_count totalsize",
        f"setexpr ee_count ${{ee_count}} + {sector - 1:x}",
        f"setexpr ee_count ${{ee_count}} / {sector:x}",
        f"itest ${{ee_count}} -le {limit:x}",
        f"{storage} read {address:x} ${{ee_start}} ${{ee_count}}",
    ]
    version = f"setenv ee_version 0; fdt get value ee_version / {ROLLBACK_INDEX}"
    old = f'echo "{TOO_OLD}${{ee_slot}} has version ${{ee_version}}, the minimum is ${{ee_min}}"'
    checked = f'if test "${{ee_version}}" -ge "${{ee_min}}"; then {start}; else {old}; fi'
    return f'if {" && ".join(steps)}; then {version}; {checked}; fi; echo "{REFUSED}${{ee_slot}}"'


def _bootm(board: Board) -> str:
    where = f"{board.boot.load_address:x}#{CONFIGURATION}"
    return f"bootm {where} {where} ${{fdtcontroladdr}}" if board.boot.fdt == "control" else f"bootm {where}"


def _booti(board: Board) -> str:
    """Start the images in place in the FIT, which is the current `fdt`. The device tree is moved away first: U-Boot
    changes it in place and could let it grow into the image that follows."""
    steps = [
        "fdt get addr ee_kernel /images/kernel data",
        "fdt get addr ee_ramdisk /images/ramdisk data",
        "fdt get size ee_size /images/ramdisk data",
    ]
    tree = "${fdtcontroladdr}"
    if board.boot.fdt != "control":
        tree = "${fdt_addr_r}"
        steps += [
            "fdt get addr ee_tree /images/fdt data",
            "fdt get size ee_count /images/fdt data",
            f"cp.b ${{ee_tree}} {tree} ${{ee_count}}",
        ]
    return " && ".join([*steps, f"booti ${{ee_kernel}} ${{ee_ramdisk}}:${{ee_size}} {tree}"])


def _try_all(board: Board, names: dict[str, str]) -> str:
    """For each slot in BOOT_ORDER with an attempt left: count the attempt, then try the slot."""
    branches = []
    for name, slot in names.items():
        arguments = _quotable(board, [*board.boot.cmdline, f"erofs_edge.slot={slot}"])
        branches.append(
            f'if test "${{ee_name}}" = {name} && test "${{BOOT_{name}_LEFT}}" -gt 0; then '
            f'setexpr BOOT_{name}_LEFT "${{BOOT_{name}_LEFT}}" - 1; setenv ee_tried 1; run ee_save; '
            f'setenv ee_slot {slot}; setenv bootargs "{arguments}"; echo "{STAGE}{slot}"; run ee_try; fi'
        )
    return f"setenv ee_tried; for ee_name in ${{BOOT_ORDER}}; do {'; '.join(branches)}; done"


def _quotable(board: Board, words: list[str]) -> str:
    """The words in the form that they take between double quotes inside single quotes."""
    text = " ".join(words)
    for character in "'\"\\$\n":
        if character in text:
            raise ManifestError(
                f"boot.cmdline of board '{board.board}' holds {character!r}, which U-Boot's shell would interpret"
            )
    return text
