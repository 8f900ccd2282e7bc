# SPDX-License-Identifier: Apache-2.0
"""`erofs-edge completion`: the script with which a shell completes verbs, options and files."""

from __future__ import annotations

import click

VARIABLE = "_EROFS_EDGE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a shell. To install it:

    \b
    bash  eval "$(erofs-edge completion bash)"     in ~/.bashrc
    zsh   eval "$(erofs-edge completion zsh)"      in ~/.zshrc, after compinit
    fish  erofs-edge completion fish > ~/.config/fish/completions/erofs-edge.fish
    """
    from click.shell_completion import get_completion_class

    from erofs_edge.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  click supports all of SHELLS
    click.echo(found(cli, {}, "erofs-edge", VARIABLE).source())
