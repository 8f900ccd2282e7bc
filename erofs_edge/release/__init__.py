# SPDX-License-Identifier: Apache-2.0
"""Releases: a build with everything that others need to trust it and to make it again."""
