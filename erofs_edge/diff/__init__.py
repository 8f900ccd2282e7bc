# SPDX-License-Identifier: Apache-2.0
"""What differs between two builds, disks, images or files, layer by layer, and why."""
