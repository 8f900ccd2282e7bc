# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge fastboot``: the fastboot client, with the command names of Google's tool."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erofs_edge.cli.output import emit_json, json_option, note, step
from erofs_edge.errors import SourceError

if TYPE_CHECKING:
    from erofs_edge.flash.fastboot import Fastboot

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
Use = Callable[["Fastboot"], None]


@click.group()
@click.option("-s", "address", metavar="ADDRESS", default="usb",
              help="usb[:SERIAL], tcp:HOST[:PORT] or udp:HOST[:PORT]. Default: the only device on USB.")  # fmt: skip
@click.pass_context
def fastboot(ctx: click.Context, address: str) -> None:
    """Talk to a device in fastboot mode."""
    ctx.obj = address


def _with(ctx: click.Context, use: Use) -> None:
    from erofs_edge.flash.fastboot import Fastboot
    from erofs_edge.transport.fastboot.link import open_device

    with open_device(ctx.obj) as device:
        use(Fastboot(device, say=note))


@fastboot.command()
@json_option
def devices(*, as_json: bool) -> None:
    """List the devices in fastboot mode on USB, as -s takes them."""
    from erofs_edge.transport.fastboot.usb import names

    found = names()
    if as_json:
        emit_json({"devices": found})
        return
    for name in found:
        click.echo(name)


@fastboot.command()
@click.argument("name")
@json_option
@click.pass_context
def getvar(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Print the variable NAME, or all of them."""

    def use(device: Fastboot) -> None:
        found = device.variables() if name == "all" else {name: device.variable(name)}
        if as_json:
            emit_json({"variables": found})
            return
        for key, value in found.items():
            click.echo(f"{key}: {value}")

    _with(ctx, use)


@fastboot.command()
@click.argument("partition")
@click.argument("image", type=FILE)
@json_option
@click.pass_context
def flash(ctx: click.Context, partition: str, image: Path, *, as_json: bool) -> None:
    """Write IMAGE to PARTITION; zeros are not sent, and large images go in pieces that the device can hold."""

    def use(device: Fastboot) -> None:
        with step(f"Writing '{partition}' ({os.path.getsize(image) >> 10} KB)") as progress:
            sent = device.flash(partition, image, progress)
        if as_json:
            emit_json({"partition": partition, "image": image, "bytes_total": image.stat().st_size, "bytes_sent": sent})

    _with(ctx, use)


@fastboot.command()
@click.argument("partition")
@click.pass_context
def erase(ctx: click.Context, partition: str) -> None:
    """Erase PARTITION."""
    _with(ctx, lambda device: device.command(f"erase:{partition}"))


@fastboot.command("set_active")
@click.argument("slot")
@click.pass_context
def set_active(ctx: click.Context, slot: str) -> None:
    """Start from SLOT next time."""
    _with(ctx, lambda device: device.command(f"set_active:{slot}"))


@fastboot.command()
@click.argument("target", required=False, type=click.Choice(["bootloader", "fastboot", "recovery"]))
@click.pass_context
def reboot(ctx: click.Context, target: str | None) -> None:
    """Restart the device, into TARGET if one is named."""
    _with(ctx, lambda device: device.command(f"reboot-{target}" if target else "reboot"))


@fastboot.command("continue")
@click.pass_context
def continue_(ctx: click.Context) -> None:
    """Leave fastboot and go on with the boot."""
    _with(ctx, lambda device: device.command("continue"))


@fastboot.command()
@click.argument("words", nargs=-1, required=True)
@click.pass_context
def oem(ctx: click.Context, words: tuple[str, ...]) -> None:
    """A command of the device's maker."""
    _with(ctx, lambda device: device.command(f"oem {' '.join(words)}"))


@fastboot.command()
@click.argument("what", type=click.Choice(["lock", "unlock", "lock_critical", "unlock_critical", "get_unlock_ability"]))
@click.pass_context
def flashing(ctx: click.Context, what: str) -> None:
    """Lock or unlock the device, as far as its boot loader has that; unlocking erases its data."""
    _with(ctx, lambda device: device.command(f"flashing {what}"))


@fastboot.command()
@click.argument("image", type=FILE)
@click.pass_context
def stage(ctx: click.Context, image: Path) -> None:
    """Put IMAGE into the device's memory."""
    _with(ctx, lambda device: device.stage(image))


@fastboot.command()
@click.argument("image", type=FILE)
@click.pass_context
def boot(ctx: click.Context, image: Path) -> None:
    """Put IMAGE into the device's memory and start it."""

    def use(device: Fastboot) -> None:
        device.stage(image)
        device.command("boot")

    _with(ctx, use)


@fastboot.command("get_staged")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def get_staged(ctx: click.Context, out: Path) -> None:
    """Fetch what the device has staged into the file OUT."""
    _with(ctx, lambda device: _save(out, device.fetch("upload")))


@fastboot.command()
@click.argument("partition")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def fetch(ctx: click.Context, partition: str, out: Path) -> None:
    """Read PARTITION into the file OUT, if the device allows it."""
    _with(ctx, lambda device: _save(out, device.fetch(f"fetch:{partition}")))


def _save(out: Path, data: bytes) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SourceError(f"cannot write: {error.strerror}", where=str(out)) from error
