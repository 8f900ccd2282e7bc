# SPDX-License-Identifier: Apache-2.0
"""click, pathlib and dataclasses are loaded without modules they hardly use, and work as if loaded with them."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from erofs_edge.cli import light
from erofs_edge.cli.main import VERBS

NEEDLESS = {"inspect", "ast", "dis", "tokenize", "gettext", "locale", "urllib.parse", "ipaddress"}
HELP = "import sys\n{first}\nfrom erofs_edge.cli.main import main\nsys.argv[0] = 'erofs-edge'\nmain()"


def python(code: str, *words: str) -> str:
    """Return the output of a new interpreter in which nothing has been loaded."""
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_what_is_hardly_used_is_not_loaded() -> None:
    code = "import erofs_edge.cli\n"
    code += "from erofs_edge.cli.light import Later, load_dataclasses, load_pathlib\nload_pathlib()\n"
    code += "load_dataclasses()\n"
    code += "assert not any(isinstance(module, Later) for module in sys.modules.values())\nprint(*sys.modules)"
    loaded = set(python(code).split())
    assert sys.version_info >= (3, 12) or "datetime" not in loaded
    assert {"click", "pathlib", "dataclasses"} <= loaded and not loaded & NEEDLESS


def test_everybody_else_gets_the_modules_themselves() -> None:
    code = "import erofs_edge.cli, inspect, gettext, platform, click\n"
    code += "assert inspect.getsource(click.Path) and gettext.find('x') is None and platform.machine()\n"
    code += "import click.core, click.decorators\n"
    code += "assert click.core.inspect is not inspect and click.core.inspect.signature is inspect.signature\n"
    code += "import datetime; assert click.types.datetime is datetime.datetime\n"
    code += "assert click.DateTime().convert('2026-12-01', None, None) == datetime.datetime(2026, 12, 1)\n"
    code += "from erofs_edge.cli.light import load_pathlib\nload_pathlib()\n"
    code += "import pathlib; print(pathlib.Path('/a b').as_uri())"
    assert python(code) == "file:///a%20b\n"


def test_what_is_loaded_already_stays() -> None:
    code = "import inspect, gettext, platform, urllib.parse, click, pathlib\nbefore = dict(sys.modules)\n"
    code += "import erofs_edge.cli\nfrom erofs_edge.cli.light import load_pathlib\nload_pathlib()\n"
    code += "print(all(sys.modules[name] is module for name, module in before.items()), click.core.inspect is inspect)"
    assert python(code) == "True True\n"


def test_dataclasses_that_ask_for_what_was_left_out_get_it() -> None:
    """For example, a dataclass without a docstring, which gets its signature as one."""
    code = "from erofs_edge.cli.light import load_dataclasses\nload_dataclasses()\n"
    code += "from dataclasses import dataclass, field\n"
    code += "@dataclass(frozen=True, slots=True)\nclass Told:\n    'Text.'\n    x: int = 1\n"
    code += "@dataclass(frozen=True)\nclass More(Told):\n    'Text.'\n"
    code += "assert Told() == Told(1) and More(2).x == 2 and 'inspect' not in sys.modules\n"
    code += "@dataclass\nclass Place:\n    x: int\n    y: list = field(default_factory=list)\n"
    code += "import inspect\nprint(Place.__doc__, inspect.signature(Place))"
    assert python(code) == "Place(x: int, y: list = <factory>) (x: int, y: list = <factory>) -> None\n"


def test_a_module_that_is_missed_after_all_comes_while_others_load() -> None:
    """As if a newer click needed more of it at import."""
    code = "from erofs_edge.cli.light import without\n"
    code += "with without({'colorsys': {'own': abs}}):\n"
    code += "    import colorsys as stand_in\n"
    code += "    from colorsys import own, rgb_to_hsv\n"
    code += "import colorsys\n"
    code += "print(stand_in is colorsys, own is abs, rgb_to_hsv is colorsys.rgb_to_hsv, hasattr(colorsys, 'own'))\n"
    assert python(code) == "False True True False\n"


@pytest.mark.parametrize("words", ["fs ls IMG", "fs stat IMG /file", "fs cat IMG /file", "fs dump IMG", "verify IMG"])
def test_commands_start_without_it(words: str, tmp_path: Path, edge: str) -> None:
    """Also commands that have dataclasses, with or without docstrings."""
    image = tmp_path / "image"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("text")
    subprocess.run([edge, "fs", "build", tmp_path / "tree", "-o", image], check=True, capture_output=True)
    code = HELP.format(first="import atexit; atexit.register(lambda: print(' '.join(sys.modules)))")
    command = [str(image) if word == "IMG" else word for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}", *command],
        check=False,
        capture_output=True,
        text=True,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "erofs_edge.cli.main" in loaded and not loaded & (NEEDLESS - {"locale", "gettext"})


@pytest.mark.parametrize("verb", [None, "flash", "fs"])
def test_help_is_the_same_as_with_all_of_click(verb: str | None) -> None:
    words = [*([verb] if verb else []), "--help"]
    assert verb is None or verb in VERBS
    assert python(HELP.format(first="import click"), *words) == python(HELP.format(first=""), *words)


@pytest.mark.parametrize(
    "text",
    ["", "One line.", "  One.  ", "One.\n\n    Two,\n      indented.\n\tThree.\n    ", "\n\n  a\n b\n\n", "a\n \n   b"],
)
def test_texts_are_cleaned_as_inspect_does(text: str) -> None:
    assert light._cleandoc(text) == inspect.cleandoc(text)


def test_every_text_of_the_standard_library_too() -> None:
    texts = [
        text for module in (inspect, os, platform, Path) for text in (each.__doc__ for each in vars(module).values())
    ]
    for text in (text for text in texts if isinstance(text, str)):
        assert light._cleandoc(text) == inspect.cleandoc(text)


def test_the_other_stand_ins_answer_as_the_modules_do() -> None:
    import gettext

    assert light._system() == platform.system()
    assert light._gettext("No such option: {name}") == gettext.gettext("No such option: {name}")
    for number in range(4):
        assert light._ngettext("one", "many", number) == gettext.ngettext("one", "many", number)
