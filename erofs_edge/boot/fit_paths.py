# SPDX-License-Identifier: Apache-2.0
"""Paths of the signed configuration in our FITs, for code that only checks whether there is a signature and should not
load what makes or verifies one."""

from __future__ import annotations

CONFIGURATION = "conf"
CONFIGURATION_PATH = f"/configurations/{CONFIGURATION}"
SIGNATURE_PATH = f"{CONFIGURATION_PATH}/signature-1"
