# SPDX-License-Identifier: Apache-2.0
"""Trusted channels: releases behind TUF metadata on any web server; only the blocks of an image that differ are
fetched.
"""
