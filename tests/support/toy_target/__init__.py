"""The target of tests/targets/test_extending.py: the smallest one there can be, in a package of its own."""
