# SPDX-License-Identifier: Apache-2.0
"""Build a board from its file: the inputs, the pipeline, the record of the outputs."""
