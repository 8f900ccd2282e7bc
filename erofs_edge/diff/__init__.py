# SPDX-License-Identifier: Apache-2.0
"""Find what differs between two builds, disks, images or files, layer by layer, and why."""
