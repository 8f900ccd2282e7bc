# SPDX-License-Identifier: Apache-2.0
"""Programs that boot and check what we build (QEMU, reference tools), in a private prefix."""
