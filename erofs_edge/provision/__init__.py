# SPDX-License-Identifier: Apache-2.0
"""The provisioning system: an initramfs that exports its board's disk over NBD, and hashes, copies and patches
there.
"""
