# SPDX-License-Identifier: Apache-2.0
"""A release that this Python made is made again by every other one that the project supports: the same bytes.

3.13 and 3.14 are Debian's (trixie, sid), fetched into the private prefix; others are this host's. One that is not to
be had is named as skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from other_python import debian_environment, host_environment, host_python, install_libraries
from test_release import Released, product, stock_release  # noqa: F401  fixtures

from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.toolbox.fetch import fetch_sets
from erofs_edge.toolbox.prefix import prefix

pytestmark = pytest.mark.timeout(3600)

DEBIAN = {"3.13": "oracles-diffoscope", "3.14": "python-3.14"}
"""version → the set of packages that has it"""
SCRIPT = """
import json, platform, sys
from pathlib import Path
from erofs_edge.release.variations import rebuild_varied
found = rebuild_varied(Path(sys.argv[1]), Path(sys.argv[2]), "hash-seed")
print(json.dumps({
    "python": platform.python_version(), "error": found.error, "files": [one.name for one in found.verdicts],
    "other": [one.name for one in found.verdicts if not one.same],
}))
"""
"""rebuild_varied takes no compressed block from the cache that another Python filled"""


def environment(version: str, folder: Path) -> Path:
    """The interpreter of an environment with our libraries."""
    if version in DEBIAN:
        fetch_sets([DEBIAN[version]], host_mirror, print)
        python = debian_environment(prefix() / "roots" / DEBIAN[version], folder)
    else:
        host = host_python(version)
        if host is None:
            pytest.skip(f"Python {version} is not to be had on this host")
        python = host_environment(host, folder)
    install_libraries(python, "sbom")
    return python


@pytest.mark.long
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_another_python_makes_the_same_release(stock_release: Released, version: str, tmp_path: Path) -> None:  # noqa: F811
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip(f"Python {version} runs these tests and made the release")
    python = environment(version, tmp_path / "environment")
    done = subprocess.run(
        [str(python), "-c", SCRIPT, str(stock_release.folder), str(tmp_path / "again")], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["python"].startswith(f"{version}.")
    assert not said["error"] and not said["other"], said
    assert {"system.img", "boot.fit", "disk.img", "release.json", "bom.cdx.json", "report.html"} <= set(said["files"])
