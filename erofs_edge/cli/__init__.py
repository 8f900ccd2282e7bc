# SPDX-License-Identifier: Apache-2.0
"""The command line. Its modules are loaded one verb at a time, and click without what it hardly uses."""

from erofs_edge.cli.light import load_click

load_click()
