# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from sources.debian.configure.made import link_of, package, tree_with

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.model import Units
from erofs_edge.sources.debian.configure.units import (
    Install,
    apply_manifest,
    apply_presets,
    disable,
    enable,
    enable_packaged,
    enabled_by_script,
    find_unit,
    parse_install,
)
from erofs_edge.tree import FileTree

SYSTEM = "usr/lib/systemd/system"
ENABLED = """
if [ "$1" = "configure" ] || [ "$1" = "abort-upgrade" ] ; then
	deb-systemd-helper unmask 'NAME' >/dev/null || true
	if deb-systemd-helper --quiet OPTIONSwas-enabled 'NAME'; then
		deb-systemd-helper OPTIONSenable 'NAME' >/dev/null || true
	else
		deb-systemd-helper OPTIONSupdate-state 'NAME' >/dev/null || true
	fi
fi
"""
DISABLED = """
	if deb-systemd-helper debian-installed 'NAME'; then
		deb-systemd-helper unmask 'NAME' >/dev/null || true
		if deb-systemd-helper --quiet was-enabled 'NAME'; then
			deb-systemd-helper enable 'NAME' >/dev/null || true
		fi
	fi
	deb-systemd-helper update-state 'NAME' >/dev/null || true
"""


def script(text: str, name: str, options: str = "") -> str:
    return text.replace("NAME", name).replace("OPTIONS", options)


def install(**lines: str) -> str:
    return "[Unit]\nAlias=no.service\n[Install]\n" + "".join(f"{key}={value}\n" for key, value in lines.items())


def units(**files: str) -> FileTree:
    return tree_with({f"{SYSTEM}/{name.replace('__', '.').replace('AT', '@')}": text for name, text in files.items()})


def links(tree: FileTree, manager: str = "system") -> dict[str, str]:
    top = tree.get(f"etc/systemd/{manager}")
    found = FileTree(top).walk() if top is not None else ()
    return {path.decode()[1:]: node.target.decode() for path, node in found if node.is_symlink}


def test_what_a_postinst_enables_on_a_fresh_system() -> None:
    text = script(ENABLED, "ssh.service") + script(DISABLED, "ssh.socket") + script(ENABLED, "a-b@c.timer", "--user ")
    assert enabled_by_script(text) == [("system", "ssh.service"), ("user", "a-b@c.timer")]
    # asked for in a condition of an upgrade, never enabled
    assert enabled_by_script("if deb-systemd-helper --quiet was-enabled x.socket && true; then :; fi") == []


def test_install_sections() -> None:
    text = (
        "[Unit]\nWantedBy=wrong.target\n[Install]\n# WantedBy=comment.target\n"
        "WantedBy=a.target b.target\nWantedBy=c.target\nRequiredBy=r.target\nUpheldBy=u.target\n"
        "Alias=x.service \\\n  y.service\nAlso=z.socket\nDefaultInstance=tty1\nRequiredBy=\nRequiredBy=s.target\n"
    )
    assert parse_install(text) == Install(
        ("a.target", "b.target", "c.target"),
        ("s.target",),
        ("u.target",),
        ("x.service", "y.service"),
        ("z.socket",),
        "tty1",
    )


def test_links_as_systemctl_enable_makes_them() -> None:
    tree = units(
        ssh__service=install(WantedBy="multi-user.target", Alias="sshd.service", Also="ssh.socket"),
        ssh__socket=install(RequiredBy="sockets.target", UpheldBy="x.target", Also="ssh.service"),
        gettyAT__service=install(WantedBy="getty.target", DefaultInstance="tty1"),
        logAT__service=install(WantedBy="%i.target multi-%p.target", Alias="old-%i.service"),
        bareAT__service=install(WantedBy="multi-user.target"),
    )
    for unit in ("ssh.service", "getty@.service", "log@net.service", "bare@.service", "missing.service"):
        enable(tree, unit)
    at = f"/{SYSTEM}"
    assert links(tree) == {
        "multi-user.target.wants/ssh.service": f"{at}/ssh.service",
        "sshd.service": f"{at}/ssh.service",
        "sockets.target.requires/ssh.socket": f"{at}/ssh.socket",
        "x.target.upholds/ssh.socket": f"{at}/ssh.socket",
        "getty.target.wants/getty@tty1.service": f"{at}/getty@.service",
        "net.target.wants/log@net.service": f"{at}/log@.service",
        "multi-log.target.wants/log@net.service": f"{at}/log@.service",
        "old-net.service": f"{at}/log@.service",
    }


def test_packages_enable_system_and_user_units() -> None:
    tree = units(dbus__service="", broker__service=install(Alias="dbus.service"))
    tree.merge(tree_with({"usr/lib/systemd/user/broker.service": install(Alias="dbus.service")}))
    text = (
        script(ENABLED, "broker.service") + script(ENABLED, "broker.service", "--user ") + script(ENABLED, "gone.timer")
    )
    assert enable_packaged(tree, [package("broker", postinst=text)]) == ["broker.service", "broker.service (user)"]
    assert links(tree) == {"dbus.service": f"/{SYSTEM}/broker.service"}
    assert links(tree, "user") == {"dbus.service": "/usr/lib/systemd/user/broker.service"}
    assert find_unit(tree, "dbus.service") == f"{SYSTEM}/broker.service"


def test_packages_do_not_enable_what_a_preset_disables() -> None:
    tree = units(a__service=install(WantedBy="m.target"), b__service=install(WantedBy="m.target"))
    tree.merge(tree_with({"usr/lib/systemd/system-preset/90-systemd.preset": "enable b.*\ndisable *.service\n"}))
    text = script(ENABLED, "a.service") + script(ENABLED, "b.service")
    assert enable_packaged(tree, [package("p", postinst=text)]) == ["b.service"]
    assert list(links(tree)) == ["m.target.wants/b.service"]


def test_manifest_units() -> None:
    tree = units(
        a__service=install(WantedBy="multi-user.target", Alias="alias.service"),
        b__timer=install(WantedBy="timers.target"),
        gettyAT__service=install(WantedBy="getty.target", DefaultInstance="tty1"),
        static__mount="",
    )
    for unit in ("a.service", "getty@.service", "getty@tty2.service"):
        enable(tree, unit)
    apply_manifest(
        tree,
        Units(
            enable=["b.timer"], disable=["a.service", "getty@tty1.service"], mask=["static.mount", "getty@x.service"]
        ),
    )
    assert links(tree) == {
        "timers.target.wants/b.timer": f"/{SYSTEM}/b.timer",
        "getty.target.wants/getty@tty2.service": f"/{SYSTEM}/getty@.service",
        "static.mount": "/dev/null",
        "getty@x.service": "/dev/null",
    }
    apply_manifest(tree, Units(mask=["b.timer"]))
    assert "timers.target.wants/b.timer" not in links(tree)


def test_a_unit_of_the_overlay_is_linked_where_it_is() -> None:
    tree = tree_with({"etc/systemd/system/mine.service": install(WantedBy="multi-user.target")})
    enable(tree, "mine.service")
    assert (
        link_of(tree, "etc/systemd/system/multi-user.target.wants/mine.service") == "/etc/systemd/system/mine.service"
    )
    with pytest.raises(ManifestError, match="cannot be masked"):
        apply_manifest(tree, Units(mask=["mine.service"]))


@pytest.mark.parametrize("key", ["enable", "disable", "mask"])
def test_an_unknown_unit_is_an_error_with_position_and_suggestion(key: str) -> None:
    tree = units(systemd_networkd__service="", other__service="")
    with pytest.raises(ManifestError, match=r"no unit 'systemd_netword\.service'") as caught:
        apply_manifest(tree, Units(**{key: ["other.service", "systemd_netword.service"]}), lambda p: f"m.yaml:{p}")
    assert caught.value.where == f"m.yaml:units.{key}.1"
    assert caught.value.hint == "did you mean 'systemd_networkd.service'?"


def test_presets_of_etc_decide_and_those_of_packages_do_not() -> None:
    tree = units(
        a__service=install(WantedBy="multi-user.target"),
        b__service=install(WantedBy="multi-user.target"),
        cAT__service=install(WantedBy="multi-user.target"),
    )
    enable(tree, "b.service")
    tree.merge(tree_with({"usr/lib/systemd/system-preset/90-systemd.preset": "enable a.service\ndisable *\n"}))
    apply_presets(tree)
    assert list(links(tree)) == ["multi-user.target.wants/b.service"]
    rules = "# local\nenable c@.service one two\nenable a.service\ndisable b.*\nenable *\n"
    tree.merge(tree_with({"etc/systemd/system-preset/10.preset": rules}))
    apply_presets(tree)
    assert sorted(links(tree)) == [
        "multi-user.target.wants/a.service",
        "multi-user.target.wants/c@one.service",
        "multi-user.target.wants/c@two.service",
    ]


def test_disabling_takes_every_link_away() -> None:
    tree = units(a__service=install(WantedBy="x.target y.target", Alias="b.service"))
    enable(tree, "a.service")
    disable(tree, "a.service")
    assert links(tree) == {}
