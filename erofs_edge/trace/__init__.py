# SPDX-License-Identifier: Apache-2.0
"""Traces: what was read of an image, in which order; recorded by a server, bound to the image, used to lay out the next
one.
"""
