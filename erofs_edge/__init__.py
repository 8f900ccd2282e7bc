# SPDX-License-Identifier: Apache-2.0
"""erofs-edge: declarative boards to verified, reproducible EROFS systems."""

__version__ = "0.1.0"
