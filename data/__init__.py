"""Texts and documents, read and prepared: for `adapt` and `bench` today, for every command that trains later.

What a conversion itself reads is in `effconv.convert.text`.
"""
