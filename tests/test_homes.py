# SPDX-License-Identifier: Apache-2.0
"""A user that no account describes, without HOME, as containers start programs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import platformdirs
import pytest

from erofs_edge.doctor import examine
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.homes import user_folder
from erofs_edge.sources.cache import cache_root
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.trust.files import keys_directory


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable names a folder, and no account has one."""
    for name in list(os.environ):
        if name == "HOME" or name.startswith(("XDG_", "EROFS_EDGE_")):
            monkeypatch.delenv(name)

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_no_home_is_an_error_that_names_the_variable() -> None:
    for place, variable in (
        (cache_root, "EROFS_EDGE_CACHE"),
        (prefix, "EROFS_EDGE_PREFIX"),
        (keys_directory, "EROFS_EDGE_KEYS"),
    ):
        with pytest.raises(ErofsEdgeError, match="no home") as caught:
            place()
        assert variable in (caught.value.hint or "")


@pytest.mark.usefixtures("homeless")
def test_a_variable_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EROFS_EDGE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path


@pytest.mark.usefixtures("homeless")
def test_a_folder_named_tilde_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of platformdirs give the path as it is."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: Path("~/.cache") / name)
    with pytest.raises(ErofsEdgeError, match="no home"):
        user_folder("cache", "EROFS_EDGE_CACHE")


@pytest.mark.usefixtures("homeless")
def test_the_doctor_says_it_and_goes_on() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert not findings["cache"].ok
    assert "no home" in findings["cache"].seen
    assert findings["Python"].ok
