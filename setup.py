# SPDX-License-Identifier: Apache-2.0
"""Puts the stock boards and manifests, which lie at the top of a checkout, into the package as erofs_edge/stock."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithStock(build_py):
    """build_py for wheels; an editable install reads the checkout itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in ("boards", "manifests"):
                target = Path(self.build_lib) / "erofs_edge/stock" / folder
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(HERE / folder, target)


setup(cmdclass={"build_py": BuildWithStock})
