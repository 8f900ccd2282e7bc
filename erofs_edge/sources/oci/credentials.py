# SPDX-License-Identifier: Apache-2.0
"""Credentials for a registry: docker's config.json, with `auths` and with helpers.

Read in the order of podman and docker: REGISTRY_AUTH_FILE, DOCKER_CONFIG/config.json, ~/.docker/config.json. A helper
is a program docker-credential-NAME that gets the registry on standard input and answers in JSON
(docker-credential-helpers, "get"); it takes precedence over `auths`.
"""

from __future__ import annotations

import base64
import binascii
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from erofs_edge.errors import SourceError, ToolError

HELPER_SECONDS = 60
OLD_INDEX = "index"
TOKEN_USER = "<token>"
"""the user name by which a helper marks the secret as an identity token"""


@dataclass(frozen=True, slots=True)
class Login:
    """A user with a password, or an identity token instead."""

    user: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Login({self.user!r})"

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class _Auth(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct, frozen=True, rename={"helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Auth] = {}
    helpers: dict[str, str] = {}
    store: str = ""


class _Answer(msgspec.Struct, frozen=True, rename={"user": "Username", "secret": "Secret"}):
    user: str = ""
    secret: str = ""


def find_login(registry: str, environ: Mapping[str, str] = os.environ) -> Login | None:
    """The login for a registry (host, with its port), None if none is configured.

    Raises SourceError if a configuration cannot be read, ToolError if a helper is missing or fails.
    """
    path = config_path(environ)
    if path is None:
        return None
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(path)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SourceError(f"not a configuration of docker: {error}", where=str(path)) from error
    # docker stores the login for registry-1.R, which has R's images, under the address of R's old index
    site = registry.removeprefix("registry-1.")
    keys = [registry, f"https://{registry}", site, f"https://{OLD_INDEX}.{site}/v1/"]
    for key in keys:
        if helper := config.helpers.get(key):
            return _ask_helper(helper, key)
    if config.store and (login := _ask_helper(config.store, keys[0])) is not None:
        return login
    for key, auth in config.auths.items():
        if key in keys or _host(key) == registry:
            return _login(auth, f"{path}: auths of {key}")
    return None


def config_path(environ: Mapping[str, str]) -> Path | None:
    """The configuration file in effect, whether it exists or not."""
    if named := environ.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    if folder := environ.get("DOCKER_CONFIG"):
        return Path(folder) / "config.json"
    home = environ.get("HOME")
    return Path(home) / ".docker/config.json" if home else None


def _host(key: str) -> str:
    """`https://registry.example/v2/` names the same registry as `registry.example`."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _login(auth: _Auth, where: str) -> Login | None:
    if auth.identitytoken:
        return Login(identity_token=auth.identitytoken)
    if auth.username:
        return Login(auth.username, auth.password)
    if not auth.auth:
        return None
    try:
        user, colon, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise SourceError('"auth" is not user:password in base64', where=where)
    return Login(user, password.rstrip("\0"))


def _ask_helper(name: str, key: str) -> Login | None:
    program = f"docker-credential-{name}"
    if os.path.basename(name) != name:
        raise SourceError(f"not the name of a credential helper: {name!r}")
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise ToolError(f"{program} not found", hint="docker's configuration names it as credential helper") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{program}: {error}") from error
    if done.returncode:
        text = (done.stdout or done.stderr).decode(errors="replace").strip()
        if "credentials not found" in text:
            return None
        raise ToolError(f"{program} failed: {text[-200:]}")
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ToolError(f"{program} gave no usable answer") from error
    if answer.user == TOKEN_USER:
        return Login(identity_token=answer.secret)
    return Login(answer.user, answer.secret)
