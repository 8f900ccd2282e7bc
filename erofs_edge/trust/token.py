# SPDX-License-Identifier: Apache-2.0
"""`pkcs11:`: a key in a token, by its RFC 7512 URI. The private key never leaves the token.

Path attributes for selection: token, serial, manufacturer, model, slot-id; object, id, type (must be 'private'). Query:
module-path (or EROFS_EDGE_PKCS11_MODULE), pin-value, pin-source (``file:PATH``, ``env:NAME``, ``fd:N``); without
either, the PIN is obtained like a passphrase.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erofs_edge.errors import DeviceError, ErofsEdgeError, ToolError, UsageError
from erofs_edge.trust.key import supported
from erofs_edge.trust.passphrase import passphrase
from erofs_edge.trust.uri import parameters

if TYPE_CHECKING:
    from pkcs11 import Session, Token

    from erofs_edge.trust.key import AnyPublicKey

MODULE_VARIABLE = "EROFS_EDGE_PKCS11_MODULE"
PATH_ATTRIBUTES = {"token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"}
QUERY_ATTRIBUTES = {"module-path", "pin-value", "pin-source"}
SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""prefix of the digest in a PKCS#1 v1.5 signature (RFC 8017 section 9.2, note 1)"""


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """A key in a token. A session is opened for each signature, so the token may be removed in between."""

    name: str
    public_key: AnyPublicKey
    attributes: dict[str, str]
    query: dict[str, str]
    development: bool = False

    def __repr__(self) -> str:
        return f"TokenSigner({self.name!r})"

    def sign_digest(self, digest: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        with _session(self.attributes, self.query) as (session, where):
            from pkcs11 import Mechanism

            key = _private_key(session, self.attributes, where)
            if isinstance(self.public_key, RSAPublicKey):
                return bytes(key.sign(SHA256_DIGEST_INFO + digest, mechanism=Mechanism.RSA_PKCS))
            raw = bytes(key.sign(digest, mechanism=Mechanism.ECDSA))
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def open_token(rest: str) -> TokenSigner:
    """Open the signer of a pkcs11: URI; its public half is read from the token.

    Raises UsageError for a URI with attributes outside RFC 7512 or that selects nothing, DeviceError if the token or
    the key is missing, ToolError if the module cannot be used.
    """
    attributes, query = _parse(rest)
    with _session(attributes, query) as (session, where):
        key = _private_key(session, attributes, where)
        public = _public_key(session, key, where)
        name = attributes.get("object") or str(key.label)
    return TokenSigner(name, public, attributes, query)


def _parse(rest: str) -> tuple[dict[str, str], dict[str, str]]:
    path, query = parameters("pkcs11", rest, QUERY_ATTRIBUTES)
    attributes: dict[str, str] = {}
    for item in path.split(";") if path else ():
        name, equals, value = item.partition("=")
        if name not in PATH_ATTRIBUTES or not equals or name in attributes:
            raise UsageError(f"pkcs11: cannot use {item!r}", hint=f"known are {', '.join(sorted(PATH_ATTRIBUTES))}")
        # an id is bytes; latin-1 preserves each of them
        attributes[name] = urllib.parse.unquote(value, "latin-1" if name == "id" else "utf-8")
    if attributes.get("type", "private") != "private":
        raise UsageError("pkcs11: only a private key can sign", hint="type=private, or no type at all")
    if not {"object", "id"} & set(attributes):
        raise UsageError("pkcs11: the URI names no key", hint="pkcs11:token=NAME;object=KEY?module-path=MODULE.so")
    return attributes, query


@contextmanager
def _session(attributes: dict[str, str], query: dict[str, str]) -> Iterator[tuple[Session, str]]:
    """A logged-in session on the token, and the token's name for messages."""
    module = query.get("module-path") or os.environ.get(MODULE_VARIABLE)
    if module is None:
        raise UsageError(
            "pkcs11: the URI names no module", hint=f"add ?module-path=MODULE.so, or set {MODULE_VARIABLE}"
        )
    try:
        import pkcs11
    except ImportError:
        raise ToolError("pkcs11: keys need python-pkcs11", hint="pip install 'erofs-edge[pkcs11]'") from None
    try:
        library = pkcs11.lib(module)
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        raise ToolError(f"cannot load the PKCS#11 module: {error or type(error).__name__}", where=module) from None
    try:
        library.reinitialize()  # so that newly inserted tokens are seen
        token = _token(list(library.get_slots(token_present=True)), attributes, module)
        where = f"token {token.label}"
        with token.open(user_pin=_pin(query, where)) as session:
            yield session, where
    except (pkcs11.exceptions.PinIncorrect, pkcs11.exceptions.PinLenRange, pkcs11.exceptions.PinInvalid):
        raise ErofsEdgeError(
            "wrong PIN for the token", where=where, hint="careful: tokens lock after a few wrong PINs"
        ) from None
    except pkcs11.PKCS11Error as error:
        raise DeviceError(f"the token refused: {type(error).__name__}", where=module) from None


def _token(slots: list[Any], attributes: dict[str, str], module: str) -> Token:
    found: list[Token] = []
    for slot in slots:
        token: Token = slot.get_token()
        has = {
            "token": token.label.strip(),
            "serial": token.serial.decode(errors="replace").strip(),
            "manufacturer": token.manufacturer_id.strip(),
            "model": token.model.strip(),
            "slot-id": str(slot.slot_id),
        }
        if all(has[name] == value for name, value in attributes.items() if name in has):
            found.append(token)
    if len(found) != 1:
        names = ", ".join(slot.get_token().label.strip() or "(no label)" for slot in slots) or "none"
        raise DeviceError(
            "more than one token matches" if found else "no such token", where=module, hint=f"tokens: {names}"
        )
    return found[0]


def _pin(query: dict[str, str], what: str) -> str:
    if "pin-value" in query:
        return query["pin-value"]
    source = query.get("pin-source")
    if source is not None and not source.startswith(("env:", "fd:", "prompt")):
        path = Path(urllib.parse.unquote(source.removeprefix("file:")))
        try:
            return path.read_text().strip("\r\n")
        except OSError as error:
            raise ErofsEdgeError(f"cannot read the PIN: {error.strerror}", where=str(path)) from error
    return passphrase(source, what)


def _private_key(session: Session, attributes: dict[str, str], where: str) -> Any:
    from pkcs11 import Attribute, ObjectClass

    wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if "object" in attributes:
        wanted[Attribute.LABEL] = attributes["object"]
    if "id" in attributes:
        wanted[Attribute.ID] = attributes["id"].encode("latin-1")
    keys = list(session.get_objects(wanted))
    if len(keys) != 1:
        raise DeviceError(
            "no such key" if not keys else "more than one key matches",
            where=where,
            hint="choose it with object= and id=",
        )
    return keys[0]


def _public_key(session: Session, key: Any, where: str) -> AnyPublicKey:
    """The public half: for RSA it is in the private object, for EC in the public object with the same id."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
    from pkcs11 import Attribute, KeyType, ObjectClass

    if key.key_type == KeyType.RSA:
        modulus, exponent = (
            int.from_bytes(key[name], "big") for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)
        )
        return supported(RSAPublicNumbers(exponent, modulus).public_key(), where)
    if key.key_type != KeyType.EC:
        raise ErofsEdgeError(f"a key of type {key.key_type.name}", where=where, hint="use RSA-2048 or ECDSA P-256")
    publics = list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: key.id}))
    if len(publics) != 1:
        raise DeviceError("the token does not have the public key", where=where)
    point = bytes(publics[0][Attribute.EC_POINT])
    try:
        # an OCTET STRING with an uncompressed point: 04 41 04 …
        return supported(EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point[2:]), where)
    except ValueError as error:
        raise ErofsEdgeError("an elliptic-curve key on another curve", where=where, hint="use P-256") from error
