# SPDX-License-Identifier: Apache-2.0
"""RAFS v6, Nydus's image format: an EROFS image of metadata (the bootstrap) with blobs of chunks as devices."""
