# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end and interop tests share: where things are, how to run them, the test guest."""
