# SPDX-License-Identifier: Apache-2.0
"""Everything that a key vouches for, checked from the partition table down to the last block of the file system."""
