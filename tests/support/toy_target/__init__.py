"""The target of tests/test_extending.py: the smallest one there can be, in a package of its own."""
