# SPDX-License-Identifier: Apache-2.0
"""What a converted repo carries: the code files copied into it as they are, and the two that are rendered a family."""
