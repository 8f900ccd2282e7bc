# SPDX-License-Identifier: Apache-2.0
"""Push and pull, with Debian's docker-registry and with registries that fail."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from click.testing import CliRunner, Result
from killed import kills_leave_nothing
from made_build import make_build
from sources.certificates import make_certificate
from sources.oci.registries import SECRET, Fake, TokenService, fake_server, real_registry
from waiting import reserved_port

from erofs_edge.cli.main import cli
from erofs_edge.errors import MirrorError, SourceError, VerificationError
from erofs_edge.registry import artifact, pieces
from erofs_edge.registry.gather import gather
from erofs_edge.registry.pull import fetch, find
from erofs_edge.registry.push import Pushed, push
from erofs_edge.registry.remote import INDEX, Remote, open_remote
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.oci.reference import parse_reference
from erofs_edge.trust.files import file_key, make_key
from erofs_edge.trust.key import public_key_pem

MIB = 1 << 20


def tree(folder: Path, seed: int = 1) -> Path:
    folder.mkdir(parents=True)
    for name in "abc":
        (folder / name).write_bytes(random.Random(f"{seed}{name}").randbytes(700_000))
    return folder


def edge_run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments], catch_exceptions=False)


def done(*arguments: object) -> dict[str, Any]:
    result = edge_run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.img, alone; 2.img on it; 3.img with its chunks in 3.blob."""
    folder = tmp_path_factory.mktemp("images")
    one, two = tree(folder / "one"), tree(folder / "two")
    (two / "d").write_bytes(b"new" * 1000)
    for command in (
        (one, "1.img"),
        (two, "2.img", "--base", folder / "1.img"),
        (two, "3.img", "--chunksize", "4K", "--blobdev", folder / "3.blob"),
    ):
        source, name, *more = command
        result = edge_run("fs", "build", source, "-o", folder / str(name), "-T", "0", *more)
        assert result.exit_code == 0, result.output
    return folder


def remote(port: int, name: str) -> Remote:
    return open_remote(parse_reference(f"localhost:{port}/{name}"))


def sent(path: Path, port: int, name: str, **how: Any) -> Pushed:
    value, cuts = gather(path, **how)
    return push(value, cuts, remote(port, name))


def test_an_image_is_a_container_image_of_one_layer(
    registry: int, images: Path, tmp_path: Path, cache: Cache, oracle: Callable[[str], str]
) -> None:
    name = f"localhost:{registry}/app/one:v1"
    first = done("push", images / "1.img", name, "--arch", "arm64")
    assert first["sent_blobs"] == first["blobs"]
    again = done("push", images / "1.img", name)
    assert (again["sent_blobs"], again["digest"]) == (0, first["digest"])
    data = remote(registry, "app/one").manifest("v1")
    assert "sha256:" + hashlib.sha256(data).hexdigest() == first["digest"]
    manifest = json.loads(data)
    digest = "sha256:" + hashlib.sha256((images / "1.img").read_bytes()).hexdigest()
    (layer,) = manifest["layers"]
    assert (layer["mediaType"], layer["digest"]) == ("application/vnd.erofs.layer.v1", digest)
    config = json.loads(remote(registry, "app/one").blob(manifest["config"]["digest"][7:], MIB))
    assert config["rootfs"]["diff_ids"] == [digest]
    assert (config["architecture"], config["os"], config["os.features"]) == ("arm64", "linux", ["erofs"])
    pulled = done("pull", name, "-o", tmp_path / "out")
    assert pulled["fetched_bytes"] == pulled["bytes"] == (images / "1.img").stat().st_size
    assert (tmp_path / "out/1.img").read_bytes() == (images / "1.img").read_bytes()
    assert done("pull", f"localhost:{registry}/app/one@{first['digest']}", "-o", tmp_path / "b")["fetched_bytes"] == 0
    subprocess.run([oracle("fsck.erofs-1.9"), tmp_path / "b/1.img"], check=True, capture_output=True)


def test_a_layer_under_the_name_that_older_containerds_know(
    registry: int, images: Path, tmp_path: Path, cache: Cache
) -> None:
    name = f"localhost:{registry}/app/older:v1"
    done("push", images / "1.img", name, "--layer-type", "oci")
    (layer,) = json.loads(remote(registry, "app/older").manifest("v1"))["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.erofs"
    done("pull", name, "-o", tmp_path)
    assert (tmp_path / "1.img").read_bytes() == (images / "1.img").read_bytes()


def test_an_index_gives_the_architecture(registry: int, images: Path, tmp_path: Path, cache: Cache) -> None:
    entries = []
    for arch, name in (("arm64", "1.img"), ("amd64", "big.img")):
        if name == "big.img":
            (images / name).write_bytes((images / "1.img").read_bytes() + bytes(4096))
        value, cuts = gather(images / name, arch=arch)
        sha256 = push(value, cuts, remote(registry, f"app/multi:{arch}")).sha256
        platform = {"os": "linux", "architecture": arch, "os.features": ["erofs"]}
        size = len(artifact.encode(value))
        entries.append(
            {"mediaType": artifact.MANIFEST, "digest": f"sha256:{sha256}", "size": size, "platform": platform}
        )
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    remote(registry, "app/multi").put_manifest("all", json.dumps(index).encode(), INDEX)
    for arch, name in (("arm64", "1.img"), ("amd64", "big.img")):
        done("pull", f"localhost:{registry}/app/multi:all", "--arch", arch, "-o", tmp_path / arch)
        assert [path.name for path in (tmp_path / arch).iterdir()] == [name]
    result = edge_run("pull", f"localhost:{registry}/app/multi:all", "--arch", "riscv64", "-o", tmp_path / "no")
    assert "no image for linux/riscv64; available: linux/amd64, linux/arm64" in result.output
    result = edge_run("pull", f"localhost:{registry}/app/multi:all", "--arch", "z80", "-o", tmp_path / "no")
    assert result.exit_code == 2
    assert "no architecture 'z80'" in result.output


def test_a_second_version_sends_what_is_new(registry: int, images: Path, tmp_path: Path, cache: Cache) -> None:
    done("push", images / "1.img", f"localhost:{registry}/app/two:v1")
    name = f"localhost:{registry}/app/two:v2"
    record = done("push", images / "2.img", name, "--device", images / "1.img")
    assert record["sent_bytes"] < 30_000 < (images / "1.img").stat().st_size
    pulled = done("pull", name, "-o", tmp_path / "out")
    assert pulled["devices"] == ["1.img"]
    result = edge_run("fs", "check", tmp_path / "out/2.img", "--device", tmp_path / "out/1.img")
    assert result.exit_code == 0, result.output


def test_devices_must_be_the_images(registry: int, images: Path) -> None:
    name = f"localhost:{registry}/app/wrong"
    for arguments, words in (
        ([images / "2.img", name], "data on 1 extra devices, 0 are given"),
        ([images / "1.img", name, "--device", images / "3.blob"], "data on no extra devices, 1 are given"),
        ([images / "1.img", f"{name}@sha256:{'0' * 64}"], "cannot push to a digest"),
        ([images / "1.img", name, "--piece", "1000"], "not a valid size"),
        ([images / "1.img", name, "--arch", "z80"], "no architecture 'z80'"),
        ([images / "1.img", "name"], "not a reference to an image"),
    ):
        result = edge_run("push", *arguments)
        assert result.exit_code in (1, 2)
        assert words in result.output
    assert edge_run("push", images / "2.img", name, "--device", images / "3.img").exit_code


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        path = folder / f"{name}.pem"
        make_key(path, "ecdsa-p256")
        (folder / f"{name}.pub.pem").write_bytes(public_key_pem(file_key(path)))
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    make_key(keys / "board.pem", "rsa2048")
    made = make_build(tmp_path_factory.mktemp("build") / "out", file_key(keys / "board.pem"))
    (made.out / "bom.cdx.json").write_text('{"bomFormat": "CycloneDX"}')
    made.seal()
    folder: Path = made.out
    return folder


def test_a_build_comes_back_whole_and_signed(
    registry: int, build: Path, keys: Path, tmp_path: Path, cache: Cache
) -> None:
    name = f"localhost:{registry}/board:v1"
    record = done("push", build, name, "--key", f"file:{keys / 'mine.pem'}", "--piece", "64K")
    kinds = [one["kind"] for one in record["attached"]]
    assert artifact.PIECE_TYPE in remote(registry, "board").manifest("v1").decode()
    assert kinds == [
        "application/vnd.erofs-edge.blocks.v1", "application/vnd.dsse.envelope.v1+json",
        "application/vnd.cyclonedx+json", "application/pkcs7-signature",
    ]  # fmt: skip
    out = tmp_path / "out"
    pulled = done("pull", name, "-o", out, "--key", keys / "mine.pub.pem")
    assert pulled["signed_by"] == "mine"
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in build.iterdir() if not p.name.startswith(".")
    }
    other = edge_run("pull", name, "-o", tmp_path / "no", "--key", keys / "other.pub.pem")
    assert other.exit_code == 4
    assert "none of its 1 signatures is by 'other'" in other.output
    assert not (tmp_path / "no").exists()
    listed = remote(registry, "board").referrers(record["digest"][7:])
    assert sorted(one.kind for one in listed) == sorted(kinds)
    # somebody with the right to push replaces the tag, and cannot sign it
    done("push", tree_image(tmp_path, 9), name)
    assert edge_run("pull", name, "-o", tmp_path / "no", "--key", keys / "mine.pub.pem").exit_code == 4


def tree_image(folder: Path, seed: int) -> Path:
    image = folder / f"{seed}.img"
    assert edge_run("fs", "build", tree(folder / str(seed), seed), "-o", image, "-T", "0").exit_code == 0
    return image


def test_pieces_are_sent_once_and_zeros_never(registry: int, tmp_path: Path, cache: Cache) -> None:
    noise = random.Random(4).randbytes(3 * MIB)
    first, second = tmp_path / "a.raw", tmp_path / "b" / "a.raw"
    with first.open("wb") as file:
        file.write(noise[:MIB] + bytes(MIB) + noise[MIB:])
        file.seek(40 * MIB)
        file.write(b"end")
    second.parent.mkdir()
    shutil.copy(first, second)
    with second.open("r+b") as file:
        file.seek(2 * MIB + 5)
        file.write(b"changed")
    one = done("push", first, f"localhost:{registry}/raw:1", "--piece", "256K")
    assert 3 * MIB < one["sent_bytes"] < 3 * MIB + 70_000
    two = done("push", second, f"localhost:{registry}/raw:2", "--piece", "256K")
    assert two["sent_bytes"] < (256 << 10) + 70_000
    done("pull", f"localhost:{registry}/raw:1", "-o", tmp_path / "out")
    pulled = done("pull", f"localhost:{registry}/raw:2", "-o", tmp_path / "out")
    assert pulled["fetched_bytes"] == 256 << 10
    copy = tmp_path / "out/a.raw"
    assert copy.read_bytes() == second.read_bytes()
    assert copy.stat().st_blocks * 512 < 4 * MIB


def test_files_of_zeros_and_of_nothing(registry: int, tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(5 * MIB + 1)
    for name in ("empty", "zeros"):
        sent(tmp_path / name, registry, f"odd/{name}", piece=MIB)
        found = find(remote(registry, f"odd/{name}"), "arm64")
        fetch(found, remote(registry, f"odd/{name}"), tmp_path / "out", cache)
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_login_from_dockers_configuration(
    tmp_path: Path, cache: Cache, images: Path, oracle: Callable[[str], str]
) -> None:
    (tmp_path / "htpasswd").write_text(SECRET)
    auth = {"htpasswd": {"realm": "ours", "path": str(tmp_path / "htpasswd")}}
    with real_registry(oracle("docker-registry"), tmp_path / "registry", auth=auth) as port:
        with pytest.raises(MirrorError, match="requires a login"):
            sent(images / "1.img", port, "app")
        (tmp_path / "docker").mkdir()
        login = {"auths": {f"localhost:{port}": {"username": "user", "password": "secret"}}}
        (tmp_path / "docker/config.json").write_text(json.dumps(login))
        assert sent(images / "1.img", port, "app").sent_blobs
        found = find(remote(port, "app"), "arm64")
        assert fetch(found, remote(port, "app"), tmp_path / "out", cache).files


def test_tokens_of_a_service(tmp_path: Path, cache: Cache, images: Path, oracle: Callable[[str], str]) -> None:
    """What may be read may not be written: the registry asks for another token, and gets it."""
    service = TokenService(make_certificate(tmp_path), 0)

    def answer(path: str, headers: dict[str, str], _body: bytes, method: str) -> tuple[int, dict[str, str], bytes]:
        return service.answer(path.partition("?")[2], headers.get("Authorization"), method)

    with fake_server(answer) as realm:
        where = {"realm": f"http://127.0.0.1:{realm}/token", "service": "the registry", "issuer": "tests"}
        auth = {"token": {**where, "rootcertbundle": str(service.certificate)}}
        with real_registry(oracle("docker-registry"), tmp_path / "registry", auth=auth) as port:
            (tmp_path / "docker").mkdir()
            login = {"auths": {f"localhost:{port}": {"username": "user", "password": "secret"}}}
            (tmp_path / "docker/config.json").write_text(json.dumps(login))
            assert sent(images / "1.img", port, "app").sent_blobs
            # the registry names the actions in an order that changes from one answer to the next
            asked = [parse_qs(query).get("scope", [""])[0] for query, _, _ in service.asked]
            assert any({"pull", "push"} <= set(scope.rpartition(":")[2].split(",")) for scope in asked)
            assert fetch(find(remote(port, "app"), "arm64"), remote(port, "app"), tmp_path / "out", cache).files


def test_a_registry_that_keeps_the_list_itself(images: Path) -> None:
    """OCI 1.1: it answers with OCI-Subject, lists referrers, and is given no tag in place of a list."""
    held: dict[str, bytes] = {}

    def answer(path: str, _headers: dict[str, str], body: bytes, method: str) -> tuple[int, dict[str, str], bytes]:
        name = path.removeprefix("/v2/app/")
        if name.startswith("referrers/"):
            of = [data for data in held.values() if b'"subject"' in data and name.encode()[10:] in data]
            listed = [
                {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data),
                 "artifactType": json.loads(data)["artifactType"]} for data in of
            ]  # fmt: skip
            return 200, {}, json.dumps({"manifests": listed}).encode()
        if method == "HEAD":
            return (200 if name in held else 404), {}, b""
        if method == "POST":
            return 202, {"Location": "/v2/app/blobs/uploads/u"}, b""
        if method == "PUT":
            upload = "uploads" in name
            held["blobs/" + name.partition("digest=")[2] if upload else name] = body
            return 201, {"OCI-Subject": "sha256:0"} if b'"subject"' in body else {}, b""
        return (200, {}, held[name]) if name in held else (404, {}, b"")

    with fake_server(answer) as port:
        done = sent(images / "1.img", port, "app", piece=65536)
        listed = remote(port, "app").referrers(done.sha256)
    assert [one.kind for one in listed] == ["application/vnd.erofs-edge.blocks.v1"]
    assert not any("sha256-" in name for name in held)


def test_no_registry(images: Path, tmp_path: Path, cache: Cache) -> None:
    port = reserved_port()
    with pytest.raises(MirrorError, match="cannot reach the registry"):
        sent(images / "1.img", port, "app")
    assert "cannot reach the registry" in edge_run("pull", f"localhost:{port}/app", "-o", tmp_path / "o").output


def test_no_registry_is_told_before_anything_is_hashed(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[object] = []
    monkeypatch.setattr("erofs_edge.registry.gather.gather", lambda *words, **_: hashed.append(words))
    result = edge_run("push", images / "1.img", f"localhost:{reserved_port()}/app")
    assert (result.exit_code, "cannot reach the registry" in result.output, hashed) == (1, True, [])


def test_wrong_content_is_never_kept(registry: int, images: Path, tmp_path: Path, cache: Cache) -> None:
    """A registry that changes a byte of a blob, gives too much, too little or nothing, or another manifest."""
    content = (images / "1.img").read_bytes()
    value, _ = gather(images / "1.img")
    manifest = artifact.encode(value)
    sha256, top = value.files[0].pieces[0].sha256, hashlib.sha256(manifest).hexdigest()
    blobs = {
        "flipped": content[:-1] + b"x", "short": content[:-9], "long": content + b"x", "none": None,
    }  # fmt: skip
    for kind, data in blobs.items():
        fake = Fake()
        fake.hold("app", "latest", {} if data is None else {f"sha256:{sha256}": data}, manifest)
        out = tmp_path / kind
        with fake_server(fake) as port:
            with pytest.raises((VerificationError, SourceError)) as caught:
                fetch(find(remote(port, "app"), "arm64"), remote(port, "app"), out, cache)
            assert isinstance(caught.value, VerificationError) == (data is not None)
            fake.contents[f"app/manifests/sha256:{top}"] = manifest.replace(b"vnd.erofs", b"vnd.sfore")
            with pytest.raises(VerificationError):
                find(remote(port, f"app@sha256:{top}"), "arm64")
        assert not out.exists()
        assert cache.blob(sha256) is None


def test_an_upload_that_breaks_off_is_tried_again(images: Path) -> None:
    """The first POST, and the first PUT, are answered with 500; a later 403 is told in the registry's words."""
    seen: list[tuple[str, str]] = []
    held: dict[str, bytes] = {}

    def answer(path: str, _headers: dict[str, str], body: bytes, method: str) -> tuple[int, dict[str, str], bytes]:
        seen.append((method, path.partition("?")[0]))
        if method == "HEAD":
            return (200 if path in held else 404), {}, b""
        if seen.count((method, path.partition("?")[0])) == 1 and "uploads" in path:
            return 500, {}, b""
        if method == "POST":
            return 202, {"Location": "/v2/app/blobs/uploads/u1?state=x"}, b""
        if "uploads" in path:
            held["/v2/app/blobs/" + path.partition("digest=")[2]] = body
            return 201, {}, b""
        return 403, {}, b'{"errors": [{"code": "DENIED", "message": "the tag is frozen"}]}'

    with fake_server(answer) as port, pytest.raises(MirrorError, match=r"403.*the tag is frozen"):
        sent(images / "1.img", port, "app")
    assert (images / "1.img").read_bytes() in held.values()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"org.opencontainers.image.title": "../x"}, "not a name for a file"),
        ({"org.opencontainers.image.title": ".ssh"}, "not a name for a file"),
        ({"org.opencontainers.image.title": ""}, "not a name for a file"),
        ({"erofs-edge.offset": "x"}, "no number of bytes"),
        ({"erofs-edge.offset": "0", "erofs-edge.size": "10"}, "reach behind its end"),
        ({"erofs-edge.offset": "0", "erofs-edge.size": "9" * 30}, "no number of bytes"),
        ({"erofs-edge.blocks": "md5:0"}, "not a digest that is known"),
    ],
)
def test_hostile_manifests(change: dict[str, str], words: str, images: Path) -> None:
    value = json.loads(artifact.encode(gather(images / "1.img")[0]))
    value["layers"][0]["annotations"] |= change
    with pytest.raises(SourceError, match=words):
        artifact.decode(json.dumps(value).encode(), "here")


def test_what_is_no_artifact_of_files(images: Path) -> None:
    value = json.loads(artifact.encode(gather(images / "1.img")[0]))
    layer = value["layers"][0]
    tar = {**layer, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "annotations": {}}
    zstd = {**layer, "mediaType": "application/vnd.erofs.layer.v1+zstd"}
    for layers in ([], [tar], [zstd], [{**layer, "digest": "sha512:00"}], [layer, layer], [layer] * 9000):
        with pytest.raises(SourceError):
            artifact.decode(json.dumps({**value, "layers": layers}).encode(), "here")
    for data in (b"", b"[]", b"\xff", b"{" * 100_000, b'{"schemaVersion": 2}', b" " * (5 << 20)):
        with pytest.raises(SourceError):
            artifact.decode(data, "here")
    plain = artifact.decode(json.dumps({**value, "layers": [{**layer, "annotations": {}}]}).encode(), "here")
    assert plain.files[0].name == "layer-1.erofs"


def test_a_manifest_is_read_as_it_was_written(images: Path, build: Path) -> None:
    for what, length in ((images / "1.img", None), (images / "1.img", 65536), (build, 65536)):
        value, cuts = gather(what, piece=length)
        again = artifact.decode(artifact.encode(value), "here")
        assert {one.name: (one.size, one.pieces, one.blocks) for one in again.files} == {
            one.name: (one.size, one.pieces, one.blocks) for one in value.files
        }
        for cut in cuts:
            for piece in cut.stored.pieces:
                assert hashlib.sha256(b"".join(cut.body(piece))).hexdigest() == piece.sha256


def test_pieces_grow_where_there_would_be_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is data: holes have no pieces."""
    monkeypatch.setattr(pieces, "PIECES_MAX", 4)
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    with sparse.open("wb") as file:
        file.write(b"x" * 65536)
        file.seek(40 * MIB)
        file.write(b"x" * 65536)
    full.write_bytes(b"x" * MIB)
    assert [piece.size for piece in pieces.cut_file(sparse, "sparse", piece=65536).stored.pieces] == [65536] * 2
    assert [piece.size for piece in pieces.cut_file(full, "full", piece=65536).stored.pieces] == [MIB // 4] * 4


def test_a_killed_pull_leaves_nothing(registry: int, build: Path, tmp_path: Path, cache: Cache) -> None:
    name = f"localhost:{registry}/killed:v1"
    done("push", build, name)
    kills_leave_nothing(tmp_path / "out", "pull", name, "-o", tmp_path / "out")
