# SPDX-License-Identifier: Apache-2.0
"""The command line. Each verb's module is loaded on use; click is loaded without modules it hardly uses."""

from erofs_edge.cli.light import load_click

load_click()
