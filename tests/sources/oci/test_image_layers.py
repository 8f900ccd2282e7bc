# SPDX-License-Identifier: Apache-2.0
"""Layers over one another, and the architecture's image out of an index."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sources.oci.images import CODECS, Image, digest, files, image, index_of, named, raw_tar, tar_of, write_layout
from sources.samples import entry, link_groups, rows, tar_bytes

from erofs_edge.errors import SourceError, VerificationError
from erofs_edge.manifest.supply import Oci
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.directory import scan
from erofs_edge.sources.oci.image import load_image, pin_image
from erofs_edge.tree import FileTree

DIR, LINK, SYM = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


def read(folder: Path, cache: Cache, arch: str = "arm64", **fields: Any) -> FileTree:
    oci = Oci(layout=str(folder), **fields)
    return load_image(oci, pin_image(oci, arch, cache).sha256, arch, cache)


def tree_of(tmp_path: Path, cache: Cache, *layers: bytes, codec: str = "+gzip") -> FileTree:
    return read(write_layout(tmp_path / "layout", image(list(layers), codec)), cache)


def texts(tree: FileTree) -> dict[str, str]:
    return {path.decode(): inode.read().decode() for path, inode in tree.walk() if inode.is_file}


@pytest.mark.parametrize("codec", CODECS)
def test_later_layers_win(tmp_path: Path, cache: Cache, codec: str) -> None:
    tree = tree_of(tmp_path, cache, files(a="1", b="1", d__x="1"), files(b="2", d__y="2"), files(d__x="3"), codec=codec)
    assert texts(tree) == {"/a": "1", "/b": "2", "/d/x": "3", "/d/y": "2"}


def test_whiteouts_hide_what_is_below_their_layer_only(tmp_path: Path, cache: Cache) -> None:
    low = files(gone="1", stays="1", folder__x="1", folder__y="1", again="1")
    # a whiteout may stand before or behind the layer's own file of that name
    high = tar_bytes([
        entry(".wh.gone"), entry("again", b"2"), entry(".wh.again"), entry(".wh.folder"), entry(".wh.never"),
        entry(".wh..wh.plnk"), entry("folder/new", b"2"),
    ])  # fmt: skip
    assert texts(tree_of(tmp_path, cache, low, high)) == {"/stays": "1", "/again": "2", "/folder/new": "2"}


def test_opaque_directories(tmp_path: Path, cache: Cache) -> None:
    low = tar_bytes([entry("d", kind=DIR, mode=0o700), entry("d/old", b"1"), entry("d/deep/old", b"1")])
    high = tar_bytes([entry("d/new", b"2"), entry("d/.wh..wh..opq"), entry("d", kind=DIR, mode=0o711)])
    tree = tree_of(tmp_path, cache, low, high)
    assert texts(tree) == {"/d/new": "2"}
    assert tree.get("d").mode == 0o40711


def test_a_file_becomes_a_directory_and_the_other_way_round(tmp_path: Path, cache: Cache) -> None:
    low = tar_bytes([entry("f", b"1"), entry("d/x", b"1"), entry("l", kind=SYM, linkname="d")])
    high = tar_bytes([entry("f", kind=DIR), entry("f/x", b"2"), entry("d", b"2"), entry("l", kind=DIR)])
    tree = tree_of(tmp_path, cache, low, high)
    assert texts(tree) == {"/d": "2", "/f/x": "2"}
    assert tree.get("l").is_dir


def test_metadata_of_every_kind(tmp_path: Path, cache: Cache) -> None:
    attributes = {"SCHILY.xattr.security.capability": "\x01\x02"}
    low = tar_bytes([
        entry("./", kind=DIR, mode=0o755), entry("usr/bin", kind=DIR), entry("bin", kind=SYM, linkname="usr/bin"),
        entry("bin/ping", b"p", mode=0o4755, uid=7, gid=8, mtime=9, pax_headers=attributes),
        entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    ])  # fmt: skip
    high = tar_bytes([entry("usr/bin/pong", kind=LINK, linkname="bin/ping")])
    tree = tree_of(tmp_path, cache, low, high)
    found = rows(tree)
    assert found[b"/usr/bin/ping"] == (0o104755, 7, 8, 9 * 10**9, (0, 0), b"", {b"security.capability": b"\1\2"}, b"p")
    assert found[b"/null"][4] == (1, 3)
    assert link_groups(tree) == [[b"/usr/bin/ping", b"/usr/bin/pong"]], "a hard link into a lower layer"


def test_links_that_lead_out_stay_inside(tmp_path: Path, cache: Cache) -> None:
    low = tar_bytes([entry("up", kind=SYM, linkname="../../.."), entry("abs", kind=SYM, linkname="/opt")])
    tree = tree_of(tmp_path, cache, low, tar_bytes([entry("opt", kind=DIR), entry("up/x", b"1"), entry("abs/y", b"2")]))
    assert texts(tree) == {"/x": "1", "/opt/y": "2"}


def test_umoci_makes_the_same_of_it(tmp_path: Path, cache: Cache, oracle: Callable[[str], str]) -> None:
    low = tar_bytes([
        entry("./", kind=DIR), entry("bin", kind=DIR), entry("bin/a", b"1", mode=0o755), entry("gone", b"1"),
        entry("etc", kind=DIR), entry("etc/old", b"1"), entry("etc/sub", kind=DIR), entry("etc/sub/old", b"1"),
        entry("tmp", kind=DIR, mode=0o1777), entry("link", kind=SYM, linkname="etc"), entry("was-file", b"1"),
        entry("was-folder", kind=DIR), entry("was-folder/x", b"1"),
    ])  # fmt: skip
    middle = tar_bytes([
        entry(".wh.gone"), entry("etc/", kind=DIR, mode=0o750), entry("etc/.wh..wh..opq"), entry("etc/new", b"2"),
        entry("was-file", kind=DIR), entry("was-file/y", b"2"), entry("was-folder", b"2"),
        entry("bin/twin", kind=LINK, linkname="bin/a"),
    ])  # fmt: skip
    high = tar_bytes([entry("gone", b"3"), entry("bin/a", b"3", mode=0o700), entry("was-file/.wh.y")])
    folder = write_layout(tmp_path / "layout", named(image([low, middle, high]), "x"))
    command = [oracle("umoci"), "unpack", "--rootless", "--image", f"{folder}:x", str(tmp_path / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    theirs = {path: row[:1] + row[5:] for path, row in rows(scan(tmp_path / "bundle/rootfs")).items()}
    ours = {path: row[:1] + row[5:] for path, row in rows(read(folder, cache)).items()}
    for row in (theirs, ours):
        # umoci notes the owners that it could not give
        row |= {path: (*values[:2], {}, values[3]) for path, values in row.items()}
    assert ours == theirs


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (raw_tar(("../out", b"")), "climbs out"),
        (raw_tar(("/etc/passwd", b"")), "its name is absolute"),
        (raw_tar(("d/.wh...", b"")), "a whiteout of nothing"),
        (raw_tar(("d/.wh.", b"")), "a whiteout of nothing"),
        (raw_tar(("x", b"1"), ("x", b"2")), "comes twice"),
        (tar_bytes([entry("x", kind=LINK, linkname="nowhere")]), "hard link to 'nowhere'"),
        (tar_bytes([entry("x", kind=LINK, linkname="../../etc/shadow")]), "climbs out"),
        (tar_bytes([entry("d", kind=DIR), entry("x", kind=LINK, linkname="d")]), "hard link to 'd'"),
        (tar_bytes([entry("loop", kind=SYM, linkname="loop"), entry("loop/x", b"")]), "/loop is no directory"),
        (tar_bytes([entry("base/x", b"")]), "/base is no directory"),
        (files(a="x" * 2000)[:1500], "truncated"),
        (b"no tar at all" * 60, "not a tar archive"),
    ],
)
def test_hostile_layers(tmp_path: Path, cache: Cache, layer: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        tree_of(tmp_path, cache, files(base="file"), layer)
    assert "layer 2" in str(caught.value)


def test_a_layer_must_be_what_the_configuration_says(tmp_path: Path, cache: Cache) -> None:
    one = image([files(a="1")])
    other = image([files(a="2")])
    document = json.loads(one.manifest) | {"layers": json.loads(other.manifest)["layers"]}
    mixed = Image({**one.blobs, **other.blobs})
    mixed.descriptor = mixed.add(json.dumps(document).encode(), "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(VerificationError, match="layer 1: unpacked, its sha256 is"):
        read(write_layout(tmp_path / "layout", mixed), cache)


@pytest.mark.parametrize(
    ("arch", "told", "wanted"),
    [
        ("arm64", [("amd64", ""), ("arm64", ""), ("arm64", "v8")], 2),
        ("arm64", [("arm64", "v9"), ("arm64", "")], 1),
        ("armhf", [("arm", "v5"), ("arm", "v6"), ("arm", "v7")], 2),
        ("armel", [("arm", "v7"), ("arm", "v5")], 1),
        ("amd64", [("amd64", ""), ("arm64", "v8")], 0),
        ("i386", [("amd64", ""), ("386", "")], 1),
    ],
)
def test_the_image_for_the_architecture(
    tmp_path: Path, cache: Cache, arch: str, told: list[tuple[str, str]], wanted: int
) -> None:
    images = [image([files(which=str(i))], arch=a, variant=v) for i, (a, v) in enumerate(told)]
    assert texts(read(write_layout(tmp_path / "layout", *images), cache, arch))["/which"] == str(wanted)


def test_no_image_for_the_architecture(tmp_path: Path, cache: Cache) -> None:
    folder = write_layout(tmp_path / "layout", image([], arch="amd64"), image([], arch="arm", variant="v7"))
    with pytest.raises(SourceError, match=r"no image for linux/arm64; available: linux/amd64, linux/arm/v7"):
        read(folder, cache)
    # an index may lie, or say nothing
    alone = image([], arch="amd64")
    del alone.descriptor["platform"]
    with pytest.raises(SourceError, match="the image is for linux/amd64, not linux/arm64"):
        read(write_layout(tmp_path / "alone", alone), cache)


def test_indexes_in_indexes_have_an_end(tmp_path: Path, cache: Cache) -> None:
    nested = image([files(a="1")])
    for depth in range(8):
        inner = Image(dict(nested.blobs))
        inner.descriptor = inner.add(index_of(nested), "application/vnd.oci.image.index.v1+json")
        nested = inner
        folder = write_layout(tmp_path / f"layout{depth}", nested)
        if depth < 3:
            assert texts(read(folder, cache)) == {"/a": "1"}
    with pytest.raises(SourceError, match="indexes in indexes"):
        read(folder, cache)


def test_a_layout_in_a_tar_and_several_names(tmp_path: Path, cache: Cache) -> None:
    one, two = named(image([files(a="1")]), "one"), named(image([files(a="2")]), "two:2")
    folder = write_layout(tmp_path / "layout", one, two)
    for path in (folder, tar_of(folder, tmp_path / "l.tar"), tar_of(folder, tmp_path / "l.tgz", "w:gz")):
        assert texts(read(path, cache, name="two:2")) == {"/a": "2"}
        with pytest.raises(SourceError, match="holds several images: one, two:2"):
            read(path, cache)
        with pytest.raises(SourceError, match="holds no image 'three'; there is one, two:2"):
            read(path, cache, name="three")


def test_a_blob_that_was_changed(tmp_path: Path, cache: Cache) -> None:
    made = image([files(a="1")], "")
    folder = write_layout(tmp_path / "layout", made)
    layer = json.loads(made.manifest)["layers"][0]["digest"].removeprefix("sha256:")
    path = folder / "blobs/sha256" / layer
    path.write_bytes(path.read_bytes().replace(b"1", b"7", 1))
    for place in (folder, tar_of(folder, tmp_path / "l.tar")):
        with pytest.raises(VerificationError, match=f"the digest says {layer}"):
            read(place, cache)
    assert cache.blob(layer) is None
    path.unlink()
    with pytest.raises(SourceError, match=f"blobs/sha256/{layer} is missing"):
        read(folder, cache)


def manifest_of(**changes: Any) -> bytes:
    return json.dumps(json.loads(image([files(a="1")]).manifest) | changes).encode()


SMALL = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(b""), "size": 0}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "not a document of an image"),
        (b"[" * 100_000, "not a document of an image"),
        (b'"' + b"x" * (5 << 20) + b'"', "at most 4194304 are read"),
        (manifest_of(schemaVersion=1), "schema 1"),
        (manifest_of(manifests=[]), "neither an image index nor an image manifest"),
        (
            manifest_of(mediaType="application/vnd.oci.image.index.v1+json"),
            "neither an image index nor an image manifest",
        ),
        (manifest_of(config=None), "without a configuration"),
        (manifest_of(layers=[SMALL] * 600), "an image of 600 layers"),
        (manifest_of(layers=[SMALL | {"digest": "sha512:00"}]), "not a digest that is known"),
        (manifest_of(layers=[SMALL | {"digest": "sha256:../../../etc/passwd"}]), "not a digest that is known"),
        (manifest_of(layers=[SMALL | {"size": 1 << 60}]), "at most"),
        (manifest_of(layers=[SMALL | {"size": -1}]), "at most"),
        (manifest_of(layers=[SMALL | {"mediaType": "application/wasm"}]), "'application/wasm' is no file system"),
        (manifest_of(layers=[]), "0 layers, but 1 digests"),
    ],
)
def test_documents_that_are_wrong(tmp_path: Path, cache: Cache, document: bytes, message: str) -> None:
    made = image([files(a="1")])
    made.descriptor = made.add(document, "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(SourceError, match=message):
        read(write_layout(tmp_path / "layout", made), cache)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_what_is_no_layout(tmp_path: Path, cache: Cache, name: str) -> None:
    folder = write_layout(tmp_path / "layout", image([]))
    (folder / name).unlink()
    with pytest.raises(SourceError, match=f"{name} is missing"):
        read(folder, cache)
