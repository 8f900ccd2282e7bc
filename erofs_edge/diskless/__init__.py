# SPDX-License-Identifier: Apache-2.0
"""What a board starts from that has no disk of its own, or does not use it: see docs/diskless.md."""
