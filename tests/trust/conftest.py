# SPDX-License-Identifier: Apache-2.0
"""A software token, and keys in it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress

import pytest
from soft_token import PIN, SoftToken

from erofs_edge.toolbox.prefix import prefix


@pytest.fixture(scope="session")
def soft_token(tmp_path_factory: pytest.TempPathFactory, oracle: Callable[[str], str]) -> SoftToken:
    """A SoftHSM token named 'edge', in a folder of its own."""
    util = oracle("softhsm2-util")
    root = prefix() / "roots" / "oracles-token"
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    for name in ("libstdc++.so.6", "libcrypto.so.3"):  # of the prefix, where the host has none
        with suppress(OSError):
            ctypes.CDLL(name)
            continue
        ctypes.CDLL(str(next(root.glob(f"usr/lib/*/{name}"))), ctypes.RTLD_GLOBAL)
    module = root / "usr/lib/softhsm/libsofthsm2.so"
    command = [util, "--module", str(module)]
    init = ["--init-token", "--free", "--label", "edge", "--pin", PIN, "--so-pin", "12345678"]
    subprocess.run([*command, *init], check=True, capture_output=True)
    return SoftToken(module, command)
