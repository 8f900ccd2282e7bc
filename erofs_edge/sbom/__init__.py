# SPDX-License-Identifier: Apache-2.0
"""What is in a system: bills of materials, why a file is there, and which known vulnerabilities concern it."""
