# SPDX-License-Identifier: Apache-2.0
"""Programs that boot and check our builds (QEMU, reference tools), in a private prefix."""
