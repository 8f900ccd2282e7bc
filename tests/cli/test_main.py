# SPDX-License-Identifier: Apache-2.0
"""The frame of the command line: lazy verbs, errors as text and JSON, exit codes, signals, broken pipes."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import erofs_edge
from erofs_edge.cli.main import GROUPS, VERBS, cli
from erofs_edge.cli.output import emit_json, json_option
from erofs_edge.errors import CapacityError, ErofsEdgeError, ManifestError, PartialWriteError
from erofs_edge.writing import hidden_name

PROGRAM = [sys.executable, "-c", "from erofs_edge.cli.main import main; main()"]


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="erofs-edge")


def failing(error: BaseException, *, after_record: bool = False) -> click.Command:
    @click.command()
    @json_option
    def verb(as_json: bool) -> None:
        if after_record:
            emit_json({"done": 1})
        raise error

    return verb


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> object:
    """Install a command as the only verb: `verb(command)` then ``run("verb")``."""

    def install(command: click.Command) -> None:
        monkeypatch.setattr(cli, "get_command", lambda ctx, name: command)
        monkeypatch.setitem(VERBS, "verb", ("nowhere", "A verb."))

    monkeypatch.delenv("EROFS_EDGE_DEBUG", raising=False)
    return install


def test_help_names_every_verb_in_the_order_of_work() -> None:
    result = run("--help")
    assert result.exit_code == 0
    sections = result.stdout.partition("-h, --help")[2]
    assert re.findall(r"^(\S.*):$", sections, re.M) == list(GROUPS)
    assert re.findall(r"^  (\S+)  ", sections, re.M) == list(VERBS)
    assert max(map(len, sections.splitlines())) < 80, "a verb has one line"


@pytest.mark.parametrize("verb_name", VERBS)
def test_every_verb_has_its_module_and_its_help(verb_name: str) -> None:
    command = getattr(importlib.import_module(VERBS[verb_name][0]), verb_name)
    assert isinstance(command, click.Command)
    assert command.name == verb_name
    result = run(verb_name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: erofs-edge {verb_name} ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import atexit, sys\n"
        "from erofs_edge.cli.main import main\n"
        "sys.argv = ['erofs-edge', '--help']\n"
        "atexit.register(lambda: print(' '.join(sys.modules), file=sys.stderr))\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    ours = {name for name in loaded if name.startswith("erofs_edge.")}
    assert ours == {
        f"erofs_edge.{name}" for name in ("cli", "cli.light", "cli.main", "cli.output", "cli.signals", "errors")
    }
    heavy = {"msgspec", "ruamel", "cryptography", "numpy", "lz4", "zstandard", "platformdirs", "json", "hashlib"}
    heavy |= {"subprocess", "tempfile", "asyncio", "ctypes", "http", "socket", "logging", "difflib"}
    heavy |= {"inspect", "ast", "dis", "tokenize", "gettext", "locale", "pathlib"}  # of which click would load most
    assert not loaded & heavy


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["fs", "--help"], ["schema", "board"]], ids=" ".join)
def test_output_that_finds_no_room(words: list[str], unbuffered: str) -> None:
    """Whether that is noticed when it is written, or at the end."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [*PROGRAM, *words]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr == "erofs-edge: error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(
    ("closed", "code", "told"), [(">&-", 1, "cannot write the output"), ("2>&-", 0, ""), ("<&- >&- 2>&-", 1, "")]
)
def test_streams_that_a_caller_closed(closed: str, code: int, told: str, tmp_path: Path) -> None:
    """No file of ours gets their numbers, and output that cannot be printed is an error."""
    (tmp_path / "file").write_bytes(b"x")
    command = f'"$0" -c "$1" fs build . -o "$2" {closed}'
    words = ["/bin/sh", "-c", command, sys.executable, PROGRAM[-1], str(tmp_path / "out.img")]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, told in done.stderr) == (code, True)
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == bool(told)
    assert (tmp_path / "out.img").stat().st_size == 4096


def test_version() -> None:
    assert run("--version").stdout == f"erofs-edge, version {erofs_edge.__version__}\n"


def test_no_arguments_show_the_help() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Boot and flash:" in result.output


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["buidl"], "No such command 'buidl', did you mean \"build\"?", "erofs-edge --help"),
        (["zzz"], "No such command 'zzz'", "erofs-edge --help"),
        (["--zzz"], "No such option", "erofs-edge --help"),
        (["fs", "bild"], "No such command 'bild', did you mean \"build\"?", "erofs-edge fs --help"),
        (["fs", "zzz"], "No such command 'zzz'", "erofs-edge fs --help"),
        (["schema"], "'{board|manifest|lock}'. Choose from: board, manifest, lock", "erofs-edge schema --help"),
        (["schema", "bord"], "'bord' is not one of 'board', 'manifest', 'lock'", "erofs-edge schema --help"),
        (["explain", "a", "b"], "Got unexpected extra argument (b)", "erofs-edge explain --help"),
    ],
)
def test_misuse_is_one_line_and_the_help_that_mends_it(args: list[str], message: str, hint: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith("erofs-edge: error: ") and message in first
    assert second == f"hint: {hint}"


def test_an_error_is_where_what_and_hint(verb) -> None:  # type: ignore[no-untyped-def]
    verb(failing(ManifestError("unknown key", where="b.yaml:1:2", hint="remove it")))
    result = run("verb")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "erofs-edge: error: b.yaml:1:2: unknown key\nhint: remove it\n"
    verb(failing(ErofsEdgeError("it failed")))
    assert run("verb").stderr == "erofs-edge: error: it failed\n"


@pytest.mark.parametrize("error", [ErofsEdgeError, *ErofsEdgeError.__subclasses__()])
def test_the_exit_code_is_the_errors_own(verb, error: type[ErofsEdgeError]) -> None:  # type: ignore[no-untyped-def]
    verb(failing(error("x")))
    assert run("verb").exit_code == error.exit_code


def test_under_json_an_error_is_also_a_record(verb) -> None:  # type: ignore[no-untyped-def]
    verb(failing(PartialWriteError("stopped", where="disk", hint="again")))
    result = run("verb", "--json")
    assert result.exit_code == 8
    assert json.loads(result.stdout) == {
        "error": {"kind": "PartialWriteError", "message": "stopped", "where": "disk", "hint": "again", "exit_code": 8}
    }
    assert result.stderr == "erofs-edge: error: disk: stopped\nhint: again\n"


def test_a_record_that_was_printed_stays_the_only_one(verb) -> None:  # type: ignore[no-untyped-def]
    verb(failing(ErofsEdgeError("late"), after_record=True))
    result = run("verb", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"done": 1})


def test_an_error_of_the_system_is_one_line(verb) -> None:  # type: ignore[no-untyped-def]
    verb(failing(OSError(errno.ENOSPC, "No space left on device", "out/disk.img")))
    result = run("verb")
    assert result.exit_code == 1
    assert result.stderr == (
        "erofs-edge: error: out/disk.img: No space left on device\nhint: free some space, then run the command again\n"
    )


@pytest.mark.parametrize(("code", "told"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_a_full_disk_has_a_hint_whoever_tells_of_it(code: int, told: bool, verb) -> None:  # type: ignore[no-untyped-def]
    error = CapacityError("no space left for the image", where="out")
    error.__cause__ = OSError(code, "told by the system")
    verb(failing(error))
    result = run("verb")
    assert result.exit_code == 1 and ("hint: free some space" in result.stderr) == told


def test_a_folder_that_is_not_there_is_named(verb, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    error = ErofsEdgeError("cannot write the image: No such file or directory", where=str(tmp_path / "none/out.img"))
    error.__cause__ = FileNotFoundError(errno.ENOENT, "No such file or directory")
    verb(failing(error))
    assert f"hint: the folder does not exist: mkdir -p {tmp_path / 'none'}\n" in run("verb").stderr
    (tmp_path / "none").mkdir()
    error.hint = None
    assert "hint" not in run("verb").stderr


def test_a_file_that_is_written_beside_its_name_is_called_by_it(verb, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    hidden = hidden_name(tmp_path / "none/page.html")
    for temporary in (hidden, tmp_path / f"none/.page.html.{os.getpid()}.tmp"):
        verb(failing(FileNotFoundError(errno.ENOENT, "No such file or directory", str(temporary))))
        assert run("verb").stderr == (
            f"erofs-edge: error: {tmp_path / 'none/page.html'}: cannot write: No such file or directory\n"
            f"hint: the folder does not exist: mkdir -p {tmp_path / 'none'}\n"
        )
    verb(failing(FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "none/.page.html"))))
    assert run("verb").stderr == f"erofs-edge: error: {tmp_path / 'none/.page.html'}: No such file or directory\n"


def test_a_working_folder_that_is_gone_is_named(edge: str, tmp_path: Path) -> None:
    """Relative paths lead nowhere then, and the system's own error names nothing."""
    (tmp_path / "gone").mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    for command, told in (
        (["new", "mine", "--board", "rpi4"], "error: the current folder no longer exists\nhint: cd to a folder"),
        (["explain", str(tmp_path / "none/x.yaml")], "none/x.yaml"),
    ):
        (tmp_path / "gone").mkdir(exist_ok=True)
        argv = ["/bin/sh", "-c", script, "sh", str(tmp_path / "gone"), edge, *command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and told in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_a_bug_is_one_line_without_a_traceback(verb, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    verb(failing(KeyError("x\ny")))
    result = run("verb")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "erofs-edge: error: internal error: KeyError: 'x\\ny'"
    assert "EROFS_EDGE_DEBUG=1" in result.stderr and "Traceback" not in result.stderr
    monkeypatch.setenv("EROFS_EDGE_DEBUG", "1")
    assert isinstance(run("verb").exception, KeyError)


def test_ctrl_c_is_a_short_line_and_130(verb) -> None:  # type: ignore[no-untyped-def]
    verb(failing(KeyboardInterrupt()))
    result = run("verb", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "erofs-edge: interrupted\n")


def test_a_command_may_return_its_exit_code(verb) -> None:  # type: ignore[no-untyped-def]
    verb(click.Command("verb", callback=lambda: 9))
    assert run("verb").exit_code == 9
    verb(click.Command("verb", callback=lambda: None))
    assert run("verb").exit_code == 0


def test_control_characters_of_a_message_do_not_reach_the_terminal(verb) -> None:  # type: ignore[no-untyped-def]
    verb(failing(ErofsEdgeError("bad \x1b[31m\x07name\x9b", where="a\rb")))
    assert run("verb").stderr == "erofs-edge: error: a\\x0db: bad \\x1b[31m\\x07name\\x9b\n"


@pytest.mark.parametrize("call", ["click.echo('x' * 100_000)", "sys.stdout.buffer.write(b'x')"])
def test_a_reader_that_leaves_early_is_met_with_silence(call: str) -> None:
    script = (
        "import click, sys\n"
        "from erofs_edge.cli import main as frame\n"
        f"verb = click.Command('verb', callback=lambda: {call})\n"
        "frame.VERBS['verb'] = ('', ''); frame.cli.get_command = lambda ctx, name: verb\n"
        "sys.argv = ['erofs-edge', 'verb']; frame.main()\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_signals_unwind(tmp_path: Path, number: signal.Signals, code: int, said: str) -> None:
    script = (
        "import click, sys, time\n"
        "from erofs_edge.cli import main as frame\n"
        "@click.command()\n"
        "def verb():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        for _ in range(600): time.sleep(0.1)\n"  # a signal just before a sleep is handled after it
        "    finally:\n"
        "        print('unwound', flush=True)\n"
        "frame.VERBS['verb'] = ('', ''); frame.cli.get_command = lambda ctx, name: verb\n"
        "sys.argv = ['erofs-edge', 'verb']; frame.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "unwound\n")
    assert said in err and "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize(
    "body",
    [
        "os.register_at_fork(after_in_parent=send); os.fork() or os._exit(0)",
        "thing = Thing(); reference = weakref.ref(thing, lambda _: send()); del thing",
        "import sending",
        "msgspec.inspect.type_info(Sending)",
        "join_after(send)",
    ],
    ids=["fork", "destroyed", "import", "msgspec", "cleanup"],
)
def test_a_signal_is_not_lost_where_python_drops_exceptions(
    tmp_path: Path, body: str, number: signal.Signals, code: int
) -> None:
    """Python printed the exception and went on, an error of the cleanup took its place, or msgspec crashed."""
    (tmp_path / "sending.py").write_text("import __main__\n__main__.send()\nprint('whole', flush=True)\n")
    (tmp_path / "script.py").write_text(
        "import click, msgspec, msgspec.inspect, os, signal, sys, threading, time, weakref\n"
        "from erofs_edge.cli import main as frame\n"
        "from erofs_edge.cli.signals import unwind_on_ctrl_c\n"
        "class Thing: pass\n"
        f"def send(): signal.raise_signal({int(number)}); os.getpid()\n"
        "class Hints(dict):\n"
        "    def items(self): send(); print('whole', flush=True); return super().items()\n"
        "class Sending(msgspec.Struct): part: int\n"
        "Sending.__annotations__ = Hints(part=int)\n"
        "def join_after(send):\n"
        "    thread = threading.Thread()\n"
        "    try: send()\n"
        "    finally: thread.join()\n"
        "def verb():\n"
        "    unwind_on_ctrl_c()\n"
        f"    {body}\n"
        "    for _ in range(600): time.sleep(0.1)\n"
        "verb = click.Command('verb', callback=verb)\n"
        "frame.VERBS['verb'] = ('', ''); frame.cli.get_command = lambda ctx, name: verb\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # as `erofs_edge.__main__` does
        "sys.argv = ['erofs-edge', 'verb']; frame.main()\n"
    )
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stderr == ("erofs-edge: interrupted\n" if number == signal.SIGINT else "")
    assert ("whole" in done.stdout) == ("import" in body or "msgspec" in body), "these two must not be interrupted"


def test_names_that_are_not_utf_8_reach_stdout_as_bytes() -> None:
    script = (
        "import click, os, sys\n"
        "from erofs_edge.cli import main as frame\n"
        "verb = click.Command('verb', callback=lambda: click.echo(os.fsdecode(b'caf\\xe9')))\n"
        "frame.VERBS['verb'] = ('', ''); frame.cli.get_command = lambda ctx, name: verb\n"
        "sys.argv = ['erofs-edge', 'verb']; frame.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env={"PYTHONIOENCODING": "utf-8:strict"}
    )
    assert done.stdout == b"caf\xe9\n"
