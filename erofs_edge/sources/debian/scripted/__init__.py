# SPDX-License-Identifier: Apache-2.0
"""Debian packages configured by their own maintainer scripts: what goes into the machine that runs them, what of its
result is kept, and how that compares with the declarative path.

The machine itself is erofs_edge.vm; nothing here starts anything.
"""
