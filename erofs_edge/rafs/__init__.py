# SPDX-License-Identifier: Apache-2.0
"""RAFS v6: Nydus's images, which are EROFS images of metadata (the bootstrap) with blobs of chunks as devices."""
