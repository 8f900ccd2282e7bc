# SPDX-License-Identifier: Apache-2.0
"""Verify everything covered by a key's signatures, from the partition table down to the last block of the file
system.
"""
