# SPDX-License-Identifier: Apache-2.0
"""The Network Block Device protocol, both sides.

Source: doc/proto.md of the NetworkBlockDevice/nbd project ("the NBD specification" here). Only fixed newstyle
negotiation is supported: the older one has neither errors nor encryption.
"""
