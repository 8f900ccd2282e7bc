# SPDX-License-Identifier: Apache-2.0
"""The fastboot protocol over USB, TCP and UDP.

Source: system/core/fastboot/README.md of AOSP ("the fastboot specification" here).
"""
