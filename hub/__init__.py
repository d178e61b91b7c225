"""Sharing on the Hub: push a repo, refresh one that exists. Knows files and hashes, never tensors; imports no torch."""
