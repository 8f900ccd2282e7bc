# SPDX-License-Identifier: Apache-2.0
"""The boards and manifests that come with this package, by name: `extends: rpi4`, `build rpi4`.

An installed package has them in a folder of its own, a checkout at its top level. A name is looked up as a file first,
then as boards/NAME.yaml or manifests/NAME.yaml below the working directory, then as a stock name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from erofs_edge.errors import ManifestError

PACKAGE = Path(__file__).parent.parent
SHIPPED = PACKAGE / "stock"
FOLDERS = ("boards", "manifests")
PREFIX = "stock:"
"""stands for the stock folder in digests, which must not depend on where the package is installed"""


def stock_folder() -> Path:
    """Return the folder that contains `boards` and `manifests`."""
    return SHIPPED if SHIPPED.is_dir() else PACKAGE.parent


def is_name(text: str) -> bool:
    """Whether a text can be the name of a stock file."""
    return re.fullmatch(r"[a-z0-9][a-z0-9._+-]{0,63}", text) is not None and not text.endswith((".yaml", ".yml"))


def stock_names(kind: str) -> list[str]:
    """Return the names of the stock boards or manifests (`FOLDERS` has these two words)."""
    return sorted(path.stem for path in (stock_folder() / kind).glob("*.yaml"))


def stock_file(text: str, kinds: tuple[str, ...] = FOLDERS) -> Path | None:
    """Return the stock file of that name, or None."""
    if not is_name(text):
        return None
    paths = [stock_folder() / kind / f"{text}.yaml" for kind in kinds]
    return next((path for path in paths if path.is_file()), None)


def locate(path: Path, kinds: tuple[str, ...] = FOLDERS) -> Path:
    """Return the file meant by a path or a name on the command line; the path itself if there is no such file."""
    text = str(path)
    if path.is_file() or not is_name(text):
        return path
    here = [Path(kind) / f"{text}.yaml" for kind in kinds]
    return next((one for one in here if one.is_file()), None) or stock_file(text, kinds) or path


def find(path: Path, kinds: tuple[str, ...] = FOLDERS) -> Path:
    """Like `locate`, but raises ManifestError, with the known names, if nothing has the given name."""
    found = locate(path, kinds)
    if found is not path or path.exists() or not is_name(str(path)):
        return found
    names = sorted({name for kind in kinds for name in stock_names(kind)})
    import difflib

    near = difflib.get_close_matches(str(path), names, n=1)
    kind = " or ".join(kind.removesuffix("s") for kind in kinds)
    hint = f"did you mean {near[0]}?" if near else f"give the path of a file, or one of {', '.join(names)}"
    raise ManifestError(f"no such file, and no stock {kind} of that name", where=str(path), hint=hint)


def is_shipped(path: Path) -> bool:
    """Whether a file belongs to the installed package, where only its installer writes."""
    return path.absolute().is_relative_to(SHIPPED)


def is_stock(path: Path) -> bool:
    """Whether a file is one of the stock boards and manifests, of an installed package or of a checkout."""
    return any(path.absolute().is_relative_to(stock_folder() / kind) for kind in FOLDERS)


def portable(path: str, top: str) -> str | None:
    """Return the name of a stock file in digests of files outside the stock folders; None for any other file."""
    folder = str(stock_folder())
    stock = [os.path.join(folder, kind) for kind in FOLDERS]
    if any(_is_below(top, one) for one in stock) or not any(_is_below(path, one) for one in stock):
        return None
    return PREFIX + Path(os.path.relpath(path, folder)).as_posix()


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)
