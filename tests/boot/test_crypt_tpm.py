# SPDX-License-Identifier: Apache-2.0
"""The initramfs's TPM commands against a software TPM: sealed data can be unsealed, but only in the same state."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import erofs_edge.boot.crypt
from erofs_edge.boot.crypt import Crypt

FOLDER = Path(erofs_edge.boot.crypt.__file__).parent
SECRET = bytes(range(7, 39))
FORGET = """\
kept=$answer said=$tpm_said
for handle in $parent $object $session; do tpm 8001 00000165 "$handle"; done
answer=$kept tpm_said=$said
"""
"""what the kernel's resource manager does when its device is closed; a software TPM alone has no such manager"""
Tpm = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.oracle


@pytest.fixture
def tpm(tmp_path: Path, oracle: Callable[[str], str]) -> Iterator[Tpm]:
    """tpm("seal 00ff", pcrs="010000"): run shell functions of the initramfs with a software TPM as their device."""
    state = tmp_path / "state"
    state.mkdir()
    ours, theirs = socket.socketpair()
    command = [
        oracle("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}", "--fd", str(theirs.fileno()),
        "--flags", "startup-clear,not-need-init",
    ]  # fmt: skip
    machine = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()

    def run(script: str, *, pcrs: str = "") -> subprocess.CompletedProcess[str]:
        functions = "\n".join((FOLDER / f"{name}.sh").read_text() for name in ("grow", "tpm"))
        functions = functions.replace("TPM=/dev/tpmrm0", f"TPM={state}").replace("/tpm-command", f"{tmp_path}/command")
        functions = functions.replace('exec 3<>"$TPM"', "exec 3<&0")
        functions = functions.replace("exec 3>&-", FORGET)
        text = f"PCRS={pcrs}\n{functions}\n{script}\n"
        return subprocess.run(
            ["sh", "-c", text], stdin=ours.fileno(), capture_output=True, text=True, check=False, timeout=60
        )

    yield run
    machine.terminate()
    machine.wait()
    ours.close()


def sealed(tpm: Tpm, pcrs: str = "") -> tuple[str, str]:
    done = tpm(f'with_tpm seal {SECRET.hex()} && echo "$private $public" || echo "no: $tpm_said"', pcrs=pcrs)
    private, public = done.stdout.split()
    assert SECRET.hex() not in private + public
    return private, public


def unseal(tpm: Tpm, private: str, public: str, pcrs: str = "") -> str:
    done = tpm(f'with_tpm unseal {private} {public} && echo "$answer" || echo "no: $tpm_said"', pcrs=pcrs)
    return done.stdout.strip()


def test_what_is_sealed_comes_back_as_often_as_asked_for(tpm: Tpm) -> None:
    blobs = sealed(tpm)
    assert [unseal(tpm, *blobs) for _ in range(3)] == [SECRET.hex()] * 3


def test_it_comes_back_only_while_the_pcrs_are_the_same(tpm: Tpm) -> None:
    bitmap = Crypt("tpm2", pcrs=(7, 16)).bitmap
    assert bitmap == "800001"
    blobs = sealed(tpm, bitmap)
    assert unseal(tpm, *blobs, bitmap) == SECRET.hex()
    # PCR 16 is for debugging: extending it changes its value (Part 3, 22.2)
    extend = tpm(f"extend() {{ tpm 8002 00000182 00000010${{PASSWORD}}00000001000b{'5a' * 32}; }}; with_tpm extend")
    assert extend.returncode == 0, extend.stderr
    assert unseal(tpm, *blobs, bitmap).startswith("no: code 0000099d for command 0000015e")
    # nor with the empty password instead of the policy
    assert unseal(tpm, *blobs).startswith("no: code")


def test_a_sealed_key_that_was_changed_is_refused(tpm: Tpm) -> None:
    private, public = sealed(tpm)
    changed = private[:-2] + f"{int(private[-2:], 16) ^ 1:02x}"
    assert unseal(tpm, changed, public).startswith("no: code 000001df for command 00000157")


def test_a_tpm_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = "\n".join((FOLDER / f"{name}.sh").read_text() for name in ("grow", "tpm"))
    text = text.replace("TPM=/dev/tpmrm0", f"TPM={tmp_path}/none").replace("sleep 0.05", ":")
    done = subprocess.run(
        ["sh", "-c", f'{text}\nwith_tpm seal 00 || echo "$tpm_said"'], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"there is no {tmp_path}/none\n"
