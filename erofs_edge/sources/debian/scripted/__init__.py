# SPDX-License-Identifier: Apache-2.0
"""Debian packages configured by their own maintainer scripts: the input of the machine that runs them, what is kept of
its result, and how that compares with the declarative way.

The machine itself is erofs_edge.vm; nothing here starts anything.
"""
