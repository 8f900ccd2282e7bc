# SPDX-License-Identifier: Apache-2.0
"""A locked U-Boot, compiled from Debian's pinned source by a compiler from Debian packages."""
