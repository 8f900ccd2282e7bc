# SPDX-License-Identifier: Apache-2.0
"""The manual that is generated from the commands, and shell completion."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from erofs_edge.cli import manual
from erofs_edge.cli.main import VERBS, cli
from erofs_edge.cli.manual import ENVIRONMENT, EXIT_CODES, entries, markdown, roff

MAN = "docs/man/erofs-edge.1"


def test_every_command_is_in_both_pages() -> None:
    words = [entry.words for entry in entries()]
    assert len(words) == len(set(words)) and {f"erofs-edge {verb}" for verb in VERBS} <= set(words)
    assert {"erofs-edge fs build", "erofs-edge keys show", "erofs-edge verity format"} <= set(words)
    page, man = markdown(), roff()
    for entry in entries():
        assert f" {entry.words}\n\n```text\n{entry.usage}\n```" in page
        assert ".SS " + entry.words.replace("-", "\\-") + "\n" in man
        assert entry.paragraphs, f"{entry.words} says nothing of itself"


def test_a_man_page_that_both_formatters_like(repository: Path, oracle: Callable[[str], str]) -> None:
    done = subprocess.run(
        [oracle("mandoc"), "-T", "lint", "-W", "warning", str(repository / MAN)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert complaints == [], "the date would change with each build"
    shown = subprocess.run(
        [oracle("mandoc"), "-T", "utf8", "-O", "width=200", str(repository / MAN)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = re.sub(r".\x08", "", shown)
    assert "erofs-edge fs build [OPTIONS]" in text and "--relock-if-gone" in text
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", str(repository / MAN)], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""


def test_text_of_a_help_is_no_markup(
    monkeypatch: pytest.MonkeyPatch, oracle: Callable[[str], str], tmp_path: Path
) -> None:
    help_text = ".TH evil \\fB 'x' a|b <c> *d* → `e`\n\n'quote first\n\n\b\n.kept \\n\n  as it is\n"
    option = click.Option(["--x"], help="a|b \\(bu .SH")
    command = click.Command("verb", help=help_text, params=[option])
    monkeypatch.setattr(manual, "VERBS", {"verb": ("", "")})
    monkeypatch.setattr(cli, "get_command", lambda ctx, name: command)
    (tmp_path / "x.1").write_text(roff())
    shown = subprocess.run(
        [oracle("mandoc"), "-T", "utf8", "-O", "width=200", str(tmp_path / "x.1")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = re.sub(r".\x08", "", shown)
    for part in (".TH evil \\fB 'x' a|b <c> *d* → `e`", "'quote first", ".kept \\n", "  as it is", "a|b \\(bu .SH"):
        assert part in text, part
    assert "| `--x TEXT` | a\\|b \\\\(bu .SH |" in markdown() and r"\<c> \*d\*" in markdown()


def test_exit_codes_and_variables_are_all_there(repository: Path) -> None:
    documented = re.findall(r"^\| (\d+) \|", (repository / "docs/exit-codes.md").read_text(), re.M)
    assert [code for code, _ in EXIT_CODES] == documented
    used = set()
    for path in (repository / "erofs_edge").rglob("*.py"):
        used |= set(re.findall(r"\"(EROFS_EDGE_[A-Z_]+)\"", path.read_text()))
    assert used <= {name for name, _ in ENVIRONMENT}


def examples() -> list[str]:
    """The commands that helps give as examples, without what is said of them."""
    kept = [part for entry in entries() for part in entry.paragraphs if part.endswith("\n")]
    lines = [line.strip() for part in [*kept, *manual._paragraphs(cli)] for line in part.splitlines()]
    return [re.split(r" {3,}", line)[0] for line in lines if line.startswith("erofs-edge ")]


def test_examples_of_helps_are_commands() -> None:
    """Each of their words is a command, an option or an argument there is."""
    lines = examples()
    assert len(lines) > 30
    for line in lines:
        words = shlex.split(line)[1:]
        command: click.Command = cli
        ctx = click.Context(cli, info_name="erofs-edge", **cli.context_settings)
        while isinstance(command, click.Group):
            found = command.get_command(ctx, words[0])
            assert found is not None, line
            command, ctx = found, click.Context(found, info_name=words.pop(0), parent=ctx)
        _, rest, _ = command.make_parser(ctx).parse_args(words)
        assert not rest, f"{line}: more arguments than it takes"


def complete(edge: str, folder: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in ("erofs-edge", *words))
    script = (
        f'PATH="{Path(edge).parent}:$PATH"; eval "$(erofs-edge completion bash)"; complete -p erofs-edge >&2\n'
        f'COMP_WORDS=({quoted}) COMP_CWORD={len(words)}; compopt() {{ echo "compopt=$2"; }}\n'
        "_erofs_edge_completion erofs-edge; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert "-F _erofs_edge_completion" in done.stderr
    return [line for line in done.stdout.splitlines() if line]


def test_bash_completes(edge: str, tmp_path: Path) -> None:
    assert complete(edge, tmp_path, "bu") == ["build", "bundle"]
    assert complete(edge, tmp_path, "fs", "ext") == ["extract"]
    assert {"--smoke", "--slot"} <= set(complete(edge, tmp_path, "boot", "--s"))
    assert complete(edge, tmp_path, "sbom", "write", "--format", "s") == ["spdx", "spdx3"]
    assert complete(edge, tmp_path, "flash", "") == ["compopt=default"], "a file"
    assert complete(edge, tmp_path, "nothing", "--x") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_theirs(edge: str, shell: str) -> None:
    done = subprocess.run([edge, "completion", shell], capture_output=True, text=True, check=True)
    assert f"_EROFS_EDGE_COMPLETE={shell}_complete" in done.stdout and "erofs-edge" in done.stdout
