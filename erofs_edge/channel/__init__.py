# SPDX-License-Identifier: Apache-2.0
"""Trusted channels: releases behind TUF metadata on any web server; of an image only what differs is fetched."""
