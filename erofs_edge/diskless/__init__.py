# SPDX-License-Identifier: Apache-2.0
"""Boot files for boards that have no disk, or do not use it: see docs/diskless.md."""
