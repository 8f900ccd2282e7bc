# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge fastboot``: the fastboot client, with the command names of Google's tool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, one_line, step
from erofs_edge.errors import SourceError, UsageError
from erofs_edge.writing import beside

if TYPE_CHECKING:
    from erofs_edge.flash.fastboot import Fastboot

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
Use = Callable[["Fastboot"], None]
slot_option = click.option(
    "--slot", metavar="SLOT", help="For a partition with slots: a, b, …, other or all.  [default: the current slot]"
)


@click.group()
@click.option("-s", "address", metavar="ADDRESS", default="usb",
              help="usb[:SERIAL], tcp:HOST[:PORT] or udp:HOST[:PORT].  [default: the only device on USB]")  # fmt: skip
@click.pass_context
def fastboot(ctx: click.Context, address: str) -> None:
    """Talk to a device in fastboot mode, with the command names of Google's fastboot tool."""
    ctx.obj = address


def _with(ctx: click.Context, use: Use) -> None:
    from erofs_edge.flash.fastboot import Fastboot
    from erofs_edge.transport.fastboot.link import open_device

    with open_device(ctx.obj) as device:
        use(Fastboot(device, say=note))


@fastboot.command()
@json_option
def devices(*, as_json: bool) -> None:
    """List the devices in fastboot mode on USB, as addresses for -s."""
    from erofs_edge.transport.fastboot.usb import names

    found = names()
    if as_json:
        emit_json({"devices": found})
        return
    for name in found:
        click.echo(one_line(name))


@fastboot.command()
@click.argument("name")
@json_option
@click.pass_context
def getvar(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Print the device's variable NAME, or all of them.

    NAME is all for every variable.
    """

    def use(device: Fastboot) -> None:
        found = device.variables() if name == "all" else {name: device.variable(name)}
        if as_json:
            emit_json({"variables": found})
            return
        for key, value in found.items():
            click.echo(one_line(f"{key}: {value}"))

    _with(ctx, use)


@fastboot.command()
@click.argument("partition")
@click.argument("image", type=FILE)
@slot_option
@json_option
@click.pass_context
def flash(ctx: click.Context, partition: str, image: Path, slot: str | None, *, as_json: bool) -> None:
    """Write IMAGE to PARTITION.

    Zeros are sent as fill commands, and a large image is sent in pieces that fit the device's memory. IMAGE may be an
    Android sparse image of any size.
    """

    def use(device: Fastboot) -> None:
        names, sent = device.named(partition, slot), 0
        for name in names:
            with step(f"Writing '{name}' ({os.path.getsize(image) >> 10} KB)") as progress:
                sent += device.flash(name, image, progress)
        if as_json:
            record = {"partition": names[0], "partitions": names, "image": image}
            emit_json({**record, "bytes_total": image.stat().st_size, "bytes_sent": sent})

    _with(ctx, use)


@fastboot.command()
@click.argument("partition")
@slot_option
@click.pass_context
def erase(ctx: click.Context, partition: str, slot: str | None) -> None:
    """Erase PARTITION."""

    def use(device: Fastboot) -> None:
        for name in device.named(partition, slot):
            device.command(f"erase:{name}")

    _with(ctx, use)


@fastboot.command("set_active")
@click.argument("slot")
@click.pass_context
def set_active(ctx: click.Context, slot: str) -> None:
    """Make SLOT (a, b, …, or other) the next to start."""
    _with(ctx, lambda device: device.command(f"set_active:{device.slot(slot)}"))


@fastboot.command()
@click.argument("target", required=False, type=click.Choice(["bootloader", "fastboot", "recovery"]))
@click.pass_context
def reboot(ctx: click.Context, target: str | None) -> None:
    """Restart the device, optionally into another mode."""
    _with(ctx, lambda device: device.command(f"reboot-{target}" if target else "reboot"))


@fastboot.command("continue")
@click.pass_context
def continue_(ctx: click.Context) -> None:
    """Leave fastboot mode and continue booting."""
    _with(ctx, lambda device: device.command("continue"))


def _old_name(target: str) -> click.Command:
    """Return a command for scripts that were written for old versions of Google's tool."""

    @click.pass_context
    def run(ctx: click.Context) -> None:
        _with(ctx, lambda device: device.command(f"reboot-{target}"))

    return click.Command(f"reboot-{target}", callback=run, hidden=True, help=f"The same as reboot {target}.")


for _target in ("bootloader", "fastboot", "recovery"):
    fastboot.add_command(_old_name(_target))


@fastboot.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def oem(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Run a command specific to the device's vendor."""
    _with(ctx, lambda device: device.command(f"oem {' '.join(words)}"))


@fastboot.command()
@click.argument("what", type=click.Choice(["lock", "unlock", "lock_critical", "unlock_critical", "get_unlock_ability"]))
@click.pass_context
def flashing(ctx: click.Context, what: str) -> None:
    """Lock or unlock the device.

    The device's boot loader must support that. Unlocking usually erases the data.
    """
    _with(ctx, lambda device: device.command(f"flashing {what}"))


@fastboot.command()
@click.argument("image", type=FILE)
@click.pass_context
def stage(ctx: click.Context, image: Path) -> None:
    """Load IMAGE into the device's memory."""
    _with(ctx, lambda device: device.stage(image))


@fastboot.command()
@click.argument("image", type=FILE)
@click.pass_context
def boot(ctx: click.Context, image: Path) -> None:
    """Load IMAGE into the device's memory and boot it."""

    def use(device: Fastboot) -> None:
        device.stage(image)
        device.command("boot")

    _with(ctx, use)


@fastboot.command("get_staged")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def get_staged(ctx: click.Context, out: Path) -> None:
    """Save the data that the device has staged to the file OUT."""
    _with(ctx, lambda device: _save(out, [device.fetch("upload")]))


@fastboot.command()
@click.argument("partition")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@slot_option
@click.pass_context
def fetch(ctx: click.Context, partition: str, out: Path, slot: str | None) -> None:
    """Save PARTITION to the file OUT, if the device allows it."""

    def use(device: Fastboot) -> None:
        names = device.named(partition, slot)
        if len(names) > 1:
            raise UsageError("one file can hold only one slot", hint="name it, for example --slot a")
        _save(out, device.fetch_partition(names[0]))

    _with(ctx, use)


def _save(out: Path, pieces: Iterable[bytes]) -> None:
    try:
        with beside(out, "what the device sends") as temporary, temporary.open("wb") as file:
            file.writelines(pieces)
    except OSError as error:
        raise SourceError(f"cannot write: {error.strerror}", where=str(out)) from error
