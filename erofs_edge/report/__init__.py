# SPDX-License-Identifier: Apache-2.0
"""One page about a build: its contents, their places and sizes, and how to use it. Readable without JavaScript."""
