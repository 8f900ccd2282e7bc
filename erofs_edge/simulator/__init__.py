# SPDX-License-Identifier: Apache-2.0
"""Simulated devices that speak the real protocols and fail on demand. For our tests and for yours.

Each is checked against the real tool of its protocol, so that a test with it is meaningful for hardware.
"""
