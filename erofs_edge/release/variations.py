# SPDX-License-Identifier: Apache-2.0
"""Rebuild in a different environment: clock, names, directory order, processors, memory, language, umask.

Each variation is a new interpreter that changes what Python sees before the build starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from erofs_edge.errors import ReproducibilityError
from erofs_edge.release.rebuild import Rebuilt, Verdict

_SECONDS = 3600
_PATCHES = {
    "time": """
import time
for name in ("time", "time_ns"):
    real = getattr(time, name)
    step = 400 * 86400 * (10**9 if name.endswith("ns") else 1)
    setattr(time, name, lambda real=real, step=step: real() + step)
""",
    "order": """
import os
listdir, scandir = os.listdir, os.scandir
os.listdir = lambda *a: sorted(listdir(*a), reverse=True)
class Entries(list):
    def __enter__(self): return self
    def __exit__(self, *a): return None
    def close(self): pass
    def __next__(self):
        if not self: raise StopIteration
        return self.pop(0)
os.scandir = lambda *a: Entries(sorted(scandir(*a), key=lambda e: e.name, reverse=True))
""",
    "processors": "import os\nos.cpu_count = lambda: 7\nos.sched_getaffinity = lambda pid: set(range(7))\n",
    "host": """
import getpass, os, platform, socket
socket.gethostname = socket.getfqdn = platform.node = lambda *a: "another-host"
getpass.getuser = lambda: "somebody"
os.getlogin = lambda: "somebody"
os.getuid = os.geteuid = lambda: 54321
""",
    "umask": "import os\nos.umask(0o077)\n",
    "folder": "import os\nos.chdir('/')\n",
    "memory": """
import os, resource
sysconf = os.sysconf
os.sysconf = lambda name: sysconf(name) // (8 if str(name).endswith("PHYS_PAGES") else 1)
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
""",
    "one-thread": "",
    "language": "",
    "hash-seed": "",
}
VARIATIONS = tuple(_PATCHES)
_ENVIRONMENT = {
    "language": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
    "hash-seed": {"PYTHONHASHSEED": "4242"},
}
_RUN = """
import json, sys
from pathlib import Path
from erofs_edge.build.pipeline import BuildOptions
from erofs_edge.errors import ErofsEdgeError
from erofs_edge.release.rebuild import rebuild
release, out, jobs = sys.argv[1:]
try:
    found = rebuild(Path(release), Path(out), options=BuildOptions(out=Path(out), jobs=int(jobs) or None,
                                                                    compression_cache=False))
    print(json.dumps({"error": found.error, "verdicts": [[v.name, v.released, v.rebuilt] for v in found.verdicts]}))
except ErofsEdgeError as error:
    print(json.dumps({"error": str(error), "verdicts": []}))
"""


def rebuild_varied(release: Path, out: Path, variation: str) -> Rebuilt:
    """One rebuild under a variation (see VARIATIONS), without the compression cache.

    Raises ReproducibilityError if the interpreter fails or takes longer than an hour.
    """
    script = _PATCHES[variation] + _RUN
    environment = {**os.environ, **_ENVIRONMENT.get(variation, {})}
    out.mkdir(parents=True, exist_ok=True)
    jobs = "1" if variation == "one-thread" else "0"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(release.absolute()), str(out.absolute()), jobs],
            cwd=out.parent, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ReproducibilityError(
            f"the variation '{variation}' takes longer than {_SECONDS} s", where=str(release)
        ) from error
    try:
        value = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ReproducibilityError(f"the variation '{variation}' did not build: {last}", where=str(release)) from error
    return Rebuilt(out, [Verdict(*one) for one in value["verdicts"]], value["error"])
