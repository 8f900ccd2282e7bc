# SPDX-License-Identifier: Apache-2.0
"""Installer media: a disk image that boots on a board, writes the board's own disk and verifies it."""
