# SPDX-License-Identifier: Apache-2.0
"""`layers:` of a system: its images are built with it, placed where the device looks, and checked for consistency."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.build.compose import make_layers
from erofs_edge.build.inputs import Inputs, Locked, digest, gather_layers, lock_of
from erofs_edge.build.stages import Bench, quiet
from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import load_board, load_system, lock_path, save_lock
from erofs_edge.manifest.model import Lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.compose import CERTIFICATE, PROGRAM_TEXT
from erofs_edge.sources.debian.lock import lock_all
from erofs_edge.sources.debian.mirror import Mirror
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.key import Signer, public_key_pem
from erofs_edge.trust.offline import SignaturesMissingError
from erofs_edge.trust.signer import open_signer

UNIT = b"[Service]\nExecStart=systemd-sysext merge\n[Install]\nWantedBy=sysinit.target\n"
TOOL = "system: tool\nkind: sysext\nentries: [{path: /usr/bin/tool, text: 'one', mode: 0755}]\n"
OTHER = "system: other\nkind: sysext\nentries: [{path: /usr/bin/tool, text: 'two', mode: 0755}]\n"
CONF = "system: conf\nkind: confext\nentries: [{path: /etc/tool.conf, text: 'x'}]\n"
APP = "system: app\nkind: app\nentries: [{path: /usr/lib/os-release, text: 'ID=app'}]\n"


def bench(work: Path, cache: Path, signer: Signer) -> Bench:
    return Bench(work, Cache(cache), signer, quiet, jobs=1, compression_cache=False)


def lock_it(path: Path) -> None:
    system = load_system(path).value
    lock = Lock(name=system.system, suite="trixie", arch="arm64", date=86400, requested={"system": []},
                packages={"system": []})  # fmt: skip
    save_lock(lock, lock_path(path))


@pytest.fixture
def gather(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Inputs]:
    """gather(TOOL, CONF): the inputs of a build of the stock board with these layers."""
    monkeypatch.setenv("EROFS_EDGE_KEYS", str(tmp_path / "keys"))

    def gather(*texts: str) -> Inputs:
        names = []
        for text in texts:
            names.append(text.split()[1] + ".yaml")
            (tmp_path / names[-1]).write_text(text)
            lock_it(tmp_path / names[-1])
        top = tmp_path / "top.yaml"
        top.write_text(f"system: top\nlayers: [{', '.join(names)}]\n")
        lock_it(top)
        board = load_board(repository / "boards/qemu-aarch64.yaml")
        loaded = load_system(top)
        return Inputs(board, lock_of(board), "system", Locked(loaded, lock_of(loaded)), gather_layers(loaded))

    return gather


def system_tree(*, without: str = "") -> FileTree:
    """What a system needs to accept layers."""
    tree = FileTree()
    files = {
        "usr/bin/systemd-sysext": b"", "usr/bin/systemd-confext": b"", "usr/bin/systemctl": b"",
        "usr/lib/aarch64-linux-gnu/libcryptsetup.so.12": b"",
        "usr/lib/systemd/system/systemd-sysext.service": UNIT,
        "usr/lib/systemd/system/systemd-confext.service": UNIT,
        "usr/bin/tool": b"the system's",
    }  # fmt: skip
    for path, data in files.items():
        if path != without:
            tree.add(path, Inode(0o100644, content=BytesContent(data)))
    return tree


def compose(inputs: Inputs, tmp_path: Path, tree: FileTree) -> list[str]:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    _, lay, notes = make_layers(inputs, bench(work, tmp_path / "cache", open_signer("dev:dev")))
    lay(tree)
    return notes


def test_images_lie_where_the_device_looks_for_them(
    gather: Callable[..., Inputs], tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    tree = system_tree()
    notes = compose(gather(TOOL, CONF, APP), tmp_path, tree)
    assert notes == ["layer tool hides these files of the system: /usr/bin/tool"]
    top = "usr/lib/erofs-edge/layers"
    for path, name in (
        (f"{top}/sysext/tool.raw", "tool"),
        (f"{top}/confext/conf.raw", "conf"),
        (f"{top}/app/app.raw", "app"),
    ):
        node = tree.get(path)
        assert node is not None and node.read() == (tmp_path / f"work/{name}.raw").read_bytes()
        done = subprocess.run(
            [oracle("systemd-dissect"), "--validate", str(tmp_path / f"work/{name}.raw")], check=False
        )
        assert done.returncode == 0
    certificate = tree.get(CERTIFICATE)
    assert certificate is not None and certificate.read().startswith(b"-----BEGIN CERTIFICATE")
    for kind in ("sysext", "confext"):
        drop_in = tree.get(f"usr/lib/systemd/system/systemd-{kind}.service.d/10-layers.conf")
        assert drop_in is not None and b"--image-policy=root=signed+absent" in drop_in.read()
        assert tree.get(f"etc/systemd/system/sysinit.target.wants/systemd-{kind}.service") is not None


def test_an_image_of_the_device_goes_first_and_its_end_brings_the_systems_back(tmp_path: Path) -> None:
    """The program that offers the images, run here by a shell with its absolute paths moved below a folder."""
    images = tmp_path / "usr/lib/erofs-edge/layers/sysext"
    own = tmp_path / "var/lib/extensions"
    for folder in (images, own):
        folder.mkdir(parents=True)
    (images / "a.raw").touch()
    (images / "b.raw").touch()
    (own / "a.raw").touch()
    text = PROGRAM_TEXT.replace("/usr/lib/", f"{tmp_path}/usr/lib/").replace("/run/", f"{tmp_path}/run/")
    text = text.replace("/var/lib/", f"{tmp_path}/var/lib/").replace("modprobe", ": modprobe")

    def offered() -> list[str]:
        subprocess.run(["sh", "-eu", "-c", text, "offer", "sysext", "extensions"], check=True)
        return sorted(path.name for path in (tmp_path / "run/extensions").iterdir())

    assert offered() == ["b.raw"]
    (own / "a.raw").unlink()
    assert offered() == ["a.raw", "b.raw"]
    (own / "b.raw").touch()
    assert offered() == ["a.raw"]


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ("usr/bin/systemd-sysext", "no systemd-sysext for a sysext"),
        ("usr/lib/aarch64-linux-gnu/libcryptsetup.so.12", "no libcryptsetup.so.12"),
        ("usr/lib/systemd/system/systemd-sysext.service", "cannot merge a sysext"),
    ],
)
def test_a_system_that_cannot_take_layers(
    gather: Callable[..., Inputs], tmp_path: Path, without: str, words: str
) -> None:
    inputs = gather(TOOL)
    with pytest.raises(ManifestError, match=words):
        compose(inputs, tmp_path, system_tree(without=without))


def test_a_masked_merge_is_named(gather: Callable[..., Inputs], tmp_path: Path) -> None:
    tree = system_tree()
    tree.add("etc/systemd/system/systemd-sysext.service", Inode(0o120777, target=b"/dev/null"))
    with pytest.raises(ManifestError, match=r"systemd-sysext\.service is masked"):
        compose(gather(TOOL), tmp_path, tree)


def test_two_layers_with_different_files_at_one_path_are_both_named(
    gather: Callable[..., Inputs], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match="/usr/bin/tool is in layer tool and in layer other") as caught:
        compose(gather(TOOL, OTHER), tmp_path, system_tree())
    assert str(caught.value.where).endswith("top.yaml:2:21")


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ("system: top\nlayers: [gone.yaml]\n", "no such manifest"),
        ("system: top\nlayers: [tool.yaml, tool.yaml]\n", "a second layer of the manifest tool.yaml"),
        ("system: top\nkind: sysext\nlayers: [tool.yaml]\n", "a sysext has no layers of its own"),
    ],
)
def test_layers_that_make_no_sense(tmp_path: Path, top: str, words: str) -> None:
    (tmp_path / "tool.yaml").write_text(TOOL)
    (tmp_path / "top.yaml").write_text(top)
    with pytest.raises(ManifestError, match=words):
        load_system(tmp_path / "top.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("system: tool\n", "tool is a whole system"),
        ("system: tool\nkind: sysext\nsuite: forky\n", "tool is forky for arm64"),
    ],
)
def test_layers_that_do_not_fit(gather: Callable[..., Inputs], text: str, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        gather(text)


def test_the_digest_follows_layers(gather: Callable[..., Inputs], tmp_path: Path) -> None:
    first = digest(gather(TOOL), b"")
    assert digest(gather(TOOL), b"") == first
    assert digest(gather(TOOL.replace("one", "more")), b"") != first


def test_a_lock_of_a_system_locks_its_layers(gather: Callable[..., Inputs], tmp_path: Path) -> None:
    gather(TOOL, CONF)
    loaded = load_system(tmp_path / "top.yaml")
    done = lock_all(loaded, mirror=Mirror({}, tmp_path / "no-keyring.gpg"), cache=Cache(tmp_path / "cache"))
    assert [one.path.name for one in done] == ["top.lock", "tool.lock", "conf.lock"]


def test_signatures_that_are_made_elsewhere_wait_together(gather: Callable[..., Inputs], tmp_path: Path) -> None:
    inputs = gather(TOOL, CONF)
    public = tmp_path / "public.pem"
    public.write_bytes(public_key_pem(open_signer("dev:dev")))
    offline = open_signer(f"offline:{tmp_path / 'waiting'}?public-key={public}")
    waiting = set[Path]()
    for _ in range(3):
        with pytest.raises(SignaturesMissingError):
            make_layers(inputs, bench(tmp_path, tmp_path / "cache", offline))
        digests = set((tmp_path / "waiting").glob("*.digest"))
        if len(digests - waiting) == len(inputs.layers):
            return
        for path in digests - waiting:
            path.with_suffix(".sig").write_bytes(open_signer("dev:dev").sign_digest(path.read_bytes()))
        waiting |= digests
    raise AssertionError("the layers never wait at once")
