# SPDX-License-Identifier: Apache-2.0
"""Environments of other Pythons than the one that runs the tests: of this host, or Debian's from the private prefix.

A Python from the prefix needs the loader and libraries of its own suite. Its environment is a folder with pyvenv.cfg
as any other, and `bin/python` is a script that starts it so; it takes that script for itself (sys.executable).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent.parent


def host_python(version: str) -> Path | None:
    """'3.12': one on PATH or below pyenv that starts and is of that version, else None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    for path in [*([Path(found)] if found else []), *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]:
        done = subprocess.run(
            [str(path), "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False
        )
        if done.stdout.strip() == str(tuple(map(int, version.split(".")))):
            return path
    return None


def host_environment(python: Path, folder: Path) -> Path:
    """The interpreter of a new environment of one of this host's Pythons."""
    subprocess.run([str(python), "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin/python"


def debian_environment(root: Path, folder: Path) -> Path:
    """The interpreter of a new environment of the Python in `root`, unpacked Debian packages."""
    real = next(path for path in root.glob("usr/bin/python3.*") if re.fullmatch(r"python3\.\d+", path.name))
    loader = next(iter([*root.glob("usr/lib/*/ld-linux*.so.*"), *root.glob("lib/*/ld-linux*.so.*")]))
    libraries = ":".join(map(str, [*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu")]))
    script = folder / "bin/python"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!/bin/sh\nexec '{loader}' --library-path '{libraries}' --argv0 '{script}' '{real}' \"$@\"\n")
    script.chmod(0o755)
    (folder / "pyvenv.cfg").write_text(f"home = {real.parent}\ninclude-system-site-packages = false\n")
    (folder / "lib" / real.name / "site-packages").mkdir(parents=True)
    return script


def install_libraries(python: Path, *extras: str) -> None:
    """What the project needs, in the versions of requirements.lock, and the project itself as it lies here."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    folder = python.parent.parent
    pins = folder / "pins.txt"
    pins.write_text("\n".join(re.findall(r"^([a-z0-9-]+==[^\s;]+)", (HERE / "requirements.lock").read_text(), re.M)))
    # the newest pip, run from its wheel: one that came with this Python need not know the other
    download = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*download, "--dest", str(folder), "pip"], check=True)
    (wheel,) = folder.glob("pip-*.whl")
    install = [str(python), str(wheel / "pip"), "install", "--quiet", "--constraint", str(pins), *wanted]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    packages = next((folder / "lib").glob("python3.*/site-packages"))
    (packages / "project.pth").write_text(f"{HERE}\n")
