"""Comparisons with reference tensors: what a reference file is, and the checks that need more than the core."""
