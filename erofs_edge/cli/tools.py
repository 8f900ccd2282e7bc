# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge tools`: QEMU and the reference tools, in a private prefix."""

from __future__ import annotations

import click

from erofs_edge.cli.output import emit_json, json_option


@click.group()
def tools() -> None:
    """Install QEMU and the reference tools in a private prefix (EROFS_EDGE_PREFIX).

    No root is needed and nothing else on the host is changed.
    """


@tools.command()
@click.option(
    "--oracles",
    is_flag=True,
    help="Also fetch the tools that the tests compare with (mkfs.erofs, veritysetup, mkimage …).",
)
@json_option
def fetch(oracles: bool, as_json: bool) -> None:
    """Fetch missing tools from the host's Debian mirror.

    Tools that are already installed are not fetched again.
    """
    from erofs_edge.sources.debian.mirror import host_mirror
    from erofs_edge.toolbox.fetch import ORACLE_SETS, fetch_sets
    from erofs_edge.toolbox.prefix import prefix

    names = ["qemu", *(ORACLE_SETS if oracles else [])]
    found = fetch_sets(names, host_mirror, lambda text: click.echo(text, err=True))
    if as_json:
        emit_json({"prefix": str(prefix()), "sets": found})
        return
    for name in names:
        for package, version in sorted(found[name].items()):
            click.echo(f"{name:17} {package:22} {version}")


@tools.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the path of the program NAME."""
    from erofs_edge.toolbox.prefix import find

    click.echo(find(name))
