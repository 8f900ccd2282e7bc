# SPDX-License-Identifier: Apache-2.0
"""Releases: a build with everything that others need to verify it and to build it again."""
