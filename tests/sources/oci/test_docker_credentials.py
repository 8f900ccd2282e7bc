# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from erofs_edge.errors import ErofsEdgeError, SourceError, ToolError
from erofs_edge.sources.oci.credentials import Login, find_login
from erofs_edge.sources.oci.reference import parse_reference

AUTH = base64.b64encode(b"me:pass:word").decode()


def configured(tmp_path: Path, **config: Any) -> dict[str, str]:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return {"DOCKER_CONFIG": str(tmp_path)}


@pytest.mark.parametrize("key", ["r.test:5000", "https://r.test:5000", "https://r.test:5000/v2/", "http://r.test:5000"])
def test_auths_by_any_spelling(tmp_path: Path, key: str) -> None:
    environ = configured(tmp_path, auths={"other.test": {"auth": "eDp5"}, key: {"auth": AUTH}})
    assert find_login("r.test:5000", environ) == Login("me", "pass:word")
    assert find_login("r.test", environ) is None
    assert "word" not in repr(find_login("r.test:5000", environ))


@pytest.mark.parametrize("key", ["https://index.hub.test/v1/", "hub.test", "registry-1.hub.test"])
def test_a_hub_has_several_names(tmp_path: Path, key: str) -> None:
    environ = configured(tmp_path, auths={key: {"auth": AUTH}})
    assert find_login("registry-1.hub.test", environ) == Login("me", "pass:word")


def test_where_the_configuration_is(tmp_path: Path) -> None:
    assert find_login("r.test", {}) is None
    assert find_login("r.test", {"HOME": str(tmp_path)}) is None
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text('{"auths": {"r.test": {"identitytoken": "t"}}}')
    assert find_login("r.test", {"HOME": str(tmp_path)}) == Login(identity_token="t")
    podman = tmp_path / "auth.json"
    podman.write_text('{"auths": {"r.test": {"username": "p", "password": "q"}}}')
    assert find_login("r.test", {"HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(podman)}) == Login("p", "q")


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin/docker-credential-mine"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_helpers_win_over_auths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, """[ "$1" = get ] && read host; echo '{"Username": "'"$host"'", "Secret": "s"}'\n""")
    environ = configured(tmp_path, credHelpers={"r.test": "mine"}, auths={"r.test": {"auth": AUTH}})
    assert find_login("r.test", environ) == Login("r.test", "s")
    assert find_login("r.test", configured(tmp_path, credsStore="mine")) == Login("r.test", "s")


def test_helpers_may_know_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1\n")
    environ = configured(tmp_path, credsStore="mine", auths={"r.test": {"auth": AUTH}})
    assert find_login("r.test", environ) == Login("me", "pass:word")


def test_helpers_may_give_identity_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, """echo '{"Username": "<token>", "Secret": "t"}'\n""")
    assert find_login("r.test", configured(tmp_path, credsStore="mine")) == Login(identity_token="t")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"credsStore": "absent"}, ToolError, "docker-credential-absent not found"),
        ({"credsStore": "../../bin/sh"}, SourceError, "not the name of a credential helper"),
        ({"auths": {"r.test": {"auth": "!"}}}, SourceError, "auths of r.test: .* is not user:password"),
        ({"auths": {"r.test": {"auth": "eA=="}}}, SourceError, "is not user:password"),
        ({"auths": 7}, SourceError, "not a configuration of docker"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, config: dict[str, Any], error: type[ErofsEdgeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_login("r.test", configured(tmp_path, **config))


def test_a_helper_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "echo locked >&2; exit 3\n")
    with pytest.raises(ToolError, match="docker-credential-mine failed: locked"):
        find_login("r.test", configured(tmp_path, credsStore="mine"))


@pytest.mark.parametrize(
    ("text", "whole", "registry"),
    [
        ("r.test/app", "r.test/app:latest", "r.test"),
        ("r.test:5000/a/b-c:v1", "r.test:5000/a/b-c:v1", "r.test:5000"),
        (f"localhost/app:v1@sha256:{'a' * 64}", f"localhost/app@sha256:{'a' * 64}", "localhost"),
        ("hub.test/library/debian:13", "hub.test/library/debian:13", "hub.test"),
    ],
)
def test_references(text: str, whole: str, registry: str) -> None:
    assert (str(parse_reference(text)), parse_reference(text).registry) == (whole, registry)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("debian", "name the registry"),
        ("library/debian", "name the registry"),
        ("library/Debian", "name the registry"),
        ("r.test/", "name the registry"),
        ("r.test/a:b:c", "name the registry"),
        ("r.test/A", "lower case"),
        ("r.test/Owner/app:v1", "lower case"),
        (f"r.test/Owner/app@sha256:{'0' * 64}", "lower case"),
        ("r.test/app@sha256:00", "64 hexadecimal digits"),
    ],
)
def test_what_is_no_reference(text: str, hint: str) -> None:
    with pytest.raises(SourceError, match="not a reference to an image") as caught:
        parse_reference(text)
    assert hint in str(caught.value.hint)
