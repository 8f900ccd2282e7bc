# SPDX-License-Identifier: Apache-2.0
"""The contents of a system: bills of materials, why a file is there, and which known vulnerabilities affect it."""
