# SPDX-License-Identifier: Apache-2.0
"""From a board file to its bytes: the inputs, the pipeline, the record of what was made."""
