# SPDX-License-Identifier: Apache-2.0
"""Images from a real registry (Debian's docker-registry), and from one that misbehaves."""

from __future__ import annotations

import base64
import json
import random
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sources.certificates import make_certificate
from sources.oci.images import Image, digest, files, image, push
from sources.oci.registries import SECRET, Fake, TokenService, fake_server, hash_of, real_registry
from sources.samples import entry, tar_bytes
from waiting import reserved_port

from erofs_edge.errors import MirrorError, SourceError, VerificationError
from erofs_edge.manifest.supply import Oci
from erofs_edge.sources import transfer
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.oci.image import load_image, pin_image

BASIC = "Basic " + base64.b64encode(b"user:secret").decode()
NOISE = random.Random(3).randbytes(300_000)


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login of the host's, and short pauses."""
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr(transfer, "PAUSE", 0.01)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, oracle: Callable[[str], str]) -> Iterator[int]:
    with real_registry(oracle("docker-registry"), tmp_path_factory.mktemp("registry")) as port:
        yield port


def log_in(tmp_path: Path, registry: str, **auth: str) -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {registry: auth}}))


def content(oci: Oci, cache: Cache, arch: str = "arm64") -> dict[str, bytes]:
    tree = load_image(oci, pin_image(oci, arch, cache).sha256, arch, cache)
    return {path.decode(): inode.read() for path, inode in tree.walk() if inode.is_file}


def test_a_tag_is_pinned_and_then_costs_no_network(
    registry: int, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = image([files(a="1"), files(b="2")], "+zstd"), image([files(a="3")])
    push(registry, "team/app", "v1", first)
    oci = Oci(image=f"localhost:{registry}/team/app:v1")
    pin = pin_image(oci, "arm64", cache)
    assert pin.sha256 == first.sha256
    assert pin.size == sum(layer["size"] for layer in json.loads(first.manifest)["layers"])
    tree = load_image(oci, pin.sha256, "arm64", cache)
    assert tree.get("b").origin == f"localhost:{registry}/team/app:v1: layer 2"
    # the tag moves on: the pin stays what it was, another `lock` sees the new one
    push(registry, "team/app", "v1", second)
    assert pin_image(oci, "arm64", cache).sha256 == second.sha256
    with monkeypatch.context() as offline:
        offline.setattr("erofs_edge.sources.http.Client.ask", lambda *_, **__: pytest.fail("network"))
        again = load_image(oci, pin.sha256, "arm64", Cache(cache.root))
        assert again.get("a").read() == b"1"
        by_digest = Oci(image=f"localhost:{registry}/team/app@sha256:{first.sha256}")
        assert pin_image(by_digest, "arm64", Cache(cache.root)) == pin


def test_an_index_gives_the_architecture(registry: int, cache: Cache) -> None:
    images = [image([files(which=arch)], arch=arch, variant=v) for arch, v in (("amd64", ""), ("arm64", "v8"))]
    top = push(registry, "multi", "latest", *images)
    for name in ("multi", f"multi@{top}"):
        oci = Oci(image=f"127.0.0.1:{registry}/{name}")
        assert content(oci, cache) == {"/which": b"arm64"}
        assert content(oci, cache, "amd64") == {"/which": b"amd64"}
    with pytest.raises(SourceError, match="no image for linux/riscv64; available: linux/amd64, linux/arm64/v8"):
        pin_image(oci, "riscv64", cache)


def test_what_the_registry_does_not_have(registry: int, cache: Cache) -> None:
    for name in ("none:v1", f"none@sha256:{'0' * 64}"):
        with pytest.raises(SourceError, match="the registry has no none") as caught:
            pin_image(Oci(image=f"localhost:{registry}/{name}"), "arm64", cache)
        assert not isinstance(caught.value, VerificationError)


def test_a_registry_over_tls_with_a_password(
    tmp_path: Path, cache: Cache, oracle: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    (tmp_path / "htpasswd").write_text(SECRET)
    auth = {"htpasswd": {"realm": "ours", "path": str(tmp_path / "htpasswd")}}
    http = {"tls": {"certificate": str(certificate), "key": str(certificate)}}
    with real_registry(oracle("docker-registry"), tmp_path / "registry", auth=auth, http=http) as port:
        made = image([files(a="1")])
        push(
            port,
            "app",
            "v1",
            made,
            headers={"Authorization": BASIC},
            tls=ssl.create_default_context(cafile=certificate),
        )
        monkeypatch.setattr("erofs_edge.sources.oci.reference.Reference.is_local", False)
        oci = Oci(image=f"127.0.0.1:{port}/app:v1")
        with pytest.raises(MirrorError, match="certificate verify failed"):
            pin_image(oci, "arm64", cache)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(MirrorError, match="requires a login") as caught:
            pin_image(oci, "arm64", cache)
        assert "docker login" in (caught.value.hint or "")
        log_in(tmp_path, f"127.0.0.1:{port}", auth=base64.b64encode(b"user:wrong").decode())
        with pytest.raises(MirrorError, match="answered 401 Unauthorized: authentication required") as caught:
            pin_image(oci, "arm64", cache)
        assert "secret" not in str(caught.value)
        log_in(tmp_path, f"https://127.0.0.1:{port}/v2/", auth=base64.b64encode(b"user:secret").decode())
        assert content(oci, cache) == {"/a": b"1"}


def test_a_registry_with_a_token_service(tmp_path: Path, cache: Cache, oracle: Callable[[str], str]) -> None:
    service = TokenService(make_certificate(tmp_path), 0)

    def answer(path: str, headers: dict[str, str], body: bytes, method: str) -> tuple[int, dict[str, str], bytes]:
        query = body.decode() if method == "POST" else path.partition("?")[2]
        return service.answer(query, headers.get("Authorization"), method)

    with fake_server(answer) as realm:
        where = {"realm": f"http://127.0.0.1:{realm}/token", "service": "the registry", "issuer": "tests"}
        auth = {"token": {**where, "rootcertbundle": str(service.certificate)}}
        with real_registry(oracle("docker-registry"), tmp_path / "registry", auth=auth) as port:
            made = image([files(a="1"), files(b="2")])
            writing = {"Authorization": f"Bearer {service.token('repository:team/app:pull,push')}"}
            push(port, "team/app", "v1", made, headers=writing)
            oci = Oci(image=f"127.0.0.1:{port}/team/app:v1")
            with pytest.raises(MirrorError, match="answered 401 Unauthorized: nobody knows you"):
                pin_image(oci, "arm64", cache)
            log_in(tmp_path, f"127.0.0.1:{port}", username="user", password="secret")
            service.asked.clear()
            assert content(oci, cache) == {"/a": b"1", "/b": b"2"}
            # for the manifest, the configuration, and all layers
            assert [method for _, _, method in service.asked] == ["GET", "GET", "GET"]
            assert "scope=repository%3Ateam%2Fapp%3Apull" in service.asked[0][0]
            log_in(tmp_path, f"127.0.0.1:{port}", identitytoken="identity")
            assert content(oci, Cache(tmp_path / "other")) == {"/a": b"1", "/b": b"2"}
            assert service.asked[-1][1:] == (None, "POST")


def fake_image(name: str = "app", **faults: list[tuple[int, dict[str, str], bytes]]) -> tuple[Fake, Image]:
    made = image([tar_bytes([entry("noise", NOISE)])], "")
    fake = Fake(faults={key.replace("__", "/"): value for key, value in faults.items()})
    fake.hold(name, "v1", made.blobs, made.manifest)
    return fake, made


def layer_of(made: Image) -> str:
    return str(json.loads(made.manifest)["layers"][0]["digest"])


def test_a_download_that_breaks_off_goes_on(tmp_path: Path, cache: Cache) -> None:
    fake, made = fake_image()
    path = f"app/blobs/{layer_of(made)}"
    whole = made.blobs[layer_of(made)]
    fake.faults[path] = [(200, {"Content-Length": str(len(whole))}, whole[:100_000])]
    with fake_server(fake) as port:
        assert content(Oci(image=f"localhost:{port}/app:v1"), cache)["/noise"] == NOISE
    ranges = [headers.get("Range") for seen, headers in fake.seen if seen == path]
    assert ranges == [None, "bytes=100000-"]


def test_other_content_than_the_digest_says(cache: Cache) -> None:
    fake, made = fake_image()
    path = f"app/blobs/{layer_of(made)}"
    fake.contents[path] = made.blobs[layer_of(made)][:-1] + b"x"
    with fake_server(fake) as port:
        oci = Oci(image=f"localhost:{port}/app:v1")
        with pytest.raises(VerificationError, match="sha256 is") as caught:
            content(oci, cache)
        assert layer_of(made) in str(caught.value)
        assert cache.blob(layer_of(made).removeprefix("sha256:")) is None
        fake.contents[path] = b"short"
        with pytest.raises(VerificationError, match="the registry's file has 5 bytes"):
            content(oci, cache)
        fake.contents[f"app/manifests/{digest(made.manifest)}"] = b"{}"
        with pytest.raises(VerificationError, match="the digest says"):
            pin_image(Oci(image=f"localhost:{port}/app@{digest(made.manifest)}"), "arm64", Cache(cache.root / "new"))


def test_a_password_goes_to_no_other_host(tmp_path: Path, cache: Cache) -> None:
    store, made = fake_image("store")
    fake, _ = fake_image()
    layer, manifest = f"app/blobs/{layer_of(made)}", "app/manifests/v1"
    unknown = (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")
    with fake_server(store) as other, fake_server(fake) as port:
        fake.faults[layer] = [
            unknown,
            (307, {"Location": f"http://127.0.0.1:{other}/v2/store/blobs/{layer_of(made)}"}, b""),
        ]
        fake.faults[manifest] = [unknown, (302, {"Location": f"/v2/app/manifests/{digest(made.manifest)}"}, b"")]
        log_in(tmp_path, f"localhost:{port}", username="user", password="secret")
        assert content(Oci(image=f"localhost:{port}/app:v1"), cache)["/noise"] == NOISE
    assert [headers.get("Authorization") for _, headers in fake.seen if _ == manifest] == [None, BASIC]
    assert fake.seen[2][1].get("Authorization") == BASIC, "a redirect to the same host"
    assert [headers.get("Authorization") for _, headers in store.seen] == [None]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((429, {}, b'{"errors": [{"code": "TOOMANYREQUESTS"}]}'), "answered 429 Too Many Requests: TOOMANYREQUESTS"),
        ((500, {}, b"\0" * 2_000_000), "answered 500"),
        ((403, {}, b'{"errors": 7}'), "answered 403 Forbidden"),
        ((401, {"WWW-Authenticate": "Negotiate"}, b""), "requires a login"),
        ((401, {"WWW-Authenticate": 'Bearer realm="file:///etc/passwd"'}, b""), "no usable token service"),
        ((401, {"WWW-Authenticate": "Bearer"}, b""), "no usable token service"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "redirects to another scheme"),
        ((302, {"Location": "/v2/app/manifests/v1"}, b""), "more than 5 redirects"),
        ((302, {"Location": "http://[::1/"}, b""), "not a usable URI"),
        ((200, {}, b"x" * (5 << 20)), "a manifest of more than 4194304 bytes"),
        ((200, {}, b"<html>"), "not a document of an image"),
    ],
)
def test_a_registry_that_misbehaves(cache: Cache, fault: tuple[int, dict[str, str], bytes], message: str) -> None:
    fake = Fake(faults={"app/manifests/v1": [fault] * 20})
    with fake_server(fake) as port, pytest.raises(SourceError, match=message):
        pin_image(Oci(image=f"localhost:{port}/app:v1"), "arm64", cache)


def test_a_registry_that_is_not_there(cache: Cache) -> None:
    with pytest.raises(MirrorError, match="cannot reach the registry: Connection refused"):
        pin_image(Oci(image=f"localhost:{reserved_port()}/app:v1"), "arm64", cache)
    # not on this machine by its name: TLS, unless the manifest says otherwise
    fake, _ = fake_image()
    with fake_server(fake) as port:
        oci = Oci(image=f"127.0.0.2:{port}/app:v1")
        with pytest.raises(MirrorError, match="cannot reach the registry"):
            pin_image(oci, "arm64", cache)


def test_a_blob_that_is_gone(cache: Cache) -> None:
    fake, made = fake_image()
    del fake.contents[f"app/blobs/{layer_of(made)}"]
    with fake_server(fake) as port, pytest.raises(SourceError, match="no longer has sha256:"):
        content(Oci(image=f"localhost:{port}/app:v1"), cache)
    assert hash_of(made.manifest) == digest(made.manifest)
