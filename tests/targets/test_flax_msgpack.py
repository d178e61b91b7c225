"""Flax checkpoints without flax: what is read, what is written, and what hostile files end in."""

from __future__ import annotations

import importlib.util
import json
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgpack import packb

from effconv.convert.errors import BadInputError
from effconv.convert.io.dtypes import NAMES
from effconv.convert.io.flax_msgpack import (
    FlaxFile,
    array_header,
    open_flax,
    read_structure,
    structure,
    tree_order,
)
from effconv.convert.io.reader import open_checkpoint
from effconv.convert.io.source import resolve

needs_flax = pytest.mark.skipif(not importlib.util.find_spec("flax"), reason="flax is not installed")
RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "u1"}
names = st.text("abcdefgh01_é", min_size=1, max_size=12)
arrays = st.tuples(
    st.sampled_from(sorted(RAW)), st.lists(st.integers(0, 5), max_size=4).map(tuple), st.binary(max_size=64)
)
trees = st.recursive(
    arrays, lambda children: st.dictionaries(names, children, min_size=1, max_size=18), max_leaves=20
).filter(lambda tree: isinstance(tree, dict))


def leaves(tree, path=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}/")
        else:
            dtype, shape, data = value
            count = int(np.prod(shape)) * np.dtype(RAW[dtype]).itemsize
            data = (data * (count // max(len(data), 1) + 1) + bytes(count))[:count]
            yield f"{path}{key}", dtype, shape, bytes(b & 1 for b in data) if dtype == "BOOL" else data


def write(path, tensors):
    file = FlaxFile(path, [(name, dtype, shape, len(data)) for name, dtype, shape, data in tensors])
    for *_, data in tensors:
        file.append(data)
    file.finish()
    return path


def tree_file(folder, tree):
    return write(folder / "flax_model.msgpack", list(leaves(tree)))


def damage(path):
    """What reading ends in; anything but BadInputError fails the test."""
    try:
        read_structure(path, path.name)
    except BadInputError as error:
        return str(error)
    return ""


@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_what_is_written_is_read(tmp_path_factory, tree):
    path = tree_file(tmp_path_factory.mktemp("flax"), tree)
    raw, wanted = path.read_bytes(), list(leaves(tree))
    found = read_structure(path, path.name)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor, _ in found] == [leaf[:3] for leaf in wanted]
    assert [raw[start : start + count] for _, ((start, count),) in found] == [leaf[3] for leaf in wanted]


@needs_flax
@settings(max_examples=40, deadline=None)
@given(tree=trees)
def test_the_bytes_are_those_that_flax_writes(tmp_path_factory, tree):
    import ml_dtypes
    from flax import serialization

    numpy_types = {
        name: np.dtype(theirs) for name, theirs in NAMES.items() if name not in ("BF16", "F8_E4M3", "F8_E5M2")
    }
    numpy_types["BF16"] = np.dtype(ml_dtypes.bfloat16)
    theirs = {}
    for name, dtype, shape, data in leaves(tree):
        branch = theirs
        *path, last = name.split("/")
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = np.frombuffer(data, dtype=numpy_types[dtype]).reshape(shape)
    assert tree_file(tmp_path_factory.mktemp("flax"), tree).read_bytes() == serialization.to_bytes(theirs)


def test_arrays_beyond_the_format_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("effconv.convert.io.flax_msgpack.PIECE_BYTES", 100)
    values = np.arange(70, dtype="<f4").reshape(7, 10)
    write(tmp_path / "flax_model.msgpack", [("a/b", "F32", (7, 10), values.tobytes()), ("c", "F32", (1,), bytes(4))])
    ((tensor, ranges), _) = read_structure(tmp_path / "flax_model.msgpack", "flax_model.msgpack")
    assert (tensor.shape, tensor.start, [count for _, count in ranges]) == ((7, 10), -1, [100, 100, 80])
    (tmp_path / "config.json").write_text('{"model_type": "BiGS"}')
    checkpoint = open_flax(resolve(tmp_path), ["flax_model.msgpack"])
    assert (checkpoint.read("a/b").float32() == values).all()
    assert b"".join(map(bytes, checkpoint.chunks("a/b"))) == values.tobytes()
    if importlib.util.find_spec("flax"):
        from flax import serialization

        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
        theirs = serialization.to_bytes({"a": {"b": values.copy()}, "c": np.zeros(1, "<f4")})
        assert (tmp_path / "flax_model.msgpack").read_bytes() == theirs


def test_sizes_and_positions_of_huge_arrays_are_right():
    """Headers alone: an array of six gibibytes has the pieces that flax makes."""
    slots, literals, size = structure([("x", "BF16", (3 << 20, 1024), 6 << 30)])
    assert [slot.stop - slot.start for slot in slots] == [1 << 30] * 6
    assert size == (6 << 30) + sum(map(len, literals.values()))
    assert literals[0].startswith(b"\x81" + packb("x") + b"\x83" + packb("__msgpack_chunked_array__"))


def test_a_tree_has_one_order():
    assert tree_order(["a/x", "b", "a/y", "c/d/e", "c/f"]) == ["a/x", "a/y", "b", "c/d/e", "c/f"]
    with pytest.raises(ValueError, match="order"):
        structure([("a/x", "F32", (), 4), ("b", "F32", (), 4), ("a/y", "F32", (), 4)])
    with pytest.raises(ValueError, match="under a tensor"):
        structure([("a", "F32", (), 4), ("a/x", "F32", (), 4)])


GOOD = {"layer": {str(i): {"kernel": ("F32", (3, 4), b"\x01\x02"), "bias": ("F16", (4,), b"\x03")} for i in range(20)}}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_ends_in_a_clear_error(tmp_path_factory, data):
    path = tree_file(tmp_path_factory.mktemp("flax"), GOOD)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "remove"])):
            case "flip":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at + 1 :]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case _:
                del raw[at : at + data.draw(st.integers(1, 9))]
        raw = raw or bytearray(b"\x00")
    path.write_bytes(raw)
    message = damage(path)
    assert not message or "truncated or damaged" in message
    if not message:  # then what it claims is there
        assert all(start + count <= len(raw) for _, ranges in read_structure(path, "x") for start, count in ranges)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200))
def test_no_bytes_end_in_a_traceback(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("flax") / "flax_model.msgpack"
    path.write_bytes(raw)
    damage(path)


def array(dtype="F32", shape=(2,), data=bytes(8)):
    return array_header(dtype, shape, len(data)) + data


def chunked(shape=b"\x81\xa10\x02", chunks=None, flag=b"\xc3"):
    chunks = b"\x81\xa10" + array() if chunks is None else chunks
    return b"\x83" + packb("__msgpack_chunked_array__") + flag + packb("shape") + shape + packb("chunks") + chunks


HOSTILE = {
    "empty": b"",
    "no map": b"\x93\x01\x02\x03",
    "an array at the root": array(),
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "deep": b"\x81\xa1a" * 5000 + b"\x80",
    "a number": b"\x81\xa1a\x05",
    "nothing": b"\x81\xa1a\xc0",
    "a list": b"\x81\xa1a\x91" + array(),
    "a complex number": b"\x81\xa1a\xd7\x02" + bytes(8),
    "an unknown extension": b"\x81\xa1a\xd7\x07" + bytes(8),
    "a timestamp": b"\x81\xa1a\xd7\xff" + bytes(8),
    "an extension of 4 GB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "elements of 4 GB": b"\x81\xa1a\xc7\x10\x01\x93\x91\x02\xa7float32\xc6\xff\xff\xff\xff",
    "a huge axis": b"\x81\xa1a\xc7\x1d\x01\x93\x91\xcf" + b"\xff" * 8 + b"\xa7float32\xc4\x08" + bytes(8),
    "a negative axis": b"\x81\xa1a\xc7\x15\x01\x93\x91\xff\xa7float32\xc4\x08" + bytes(8),
    "axes whose product is huge": b"\x81\xa1a" + array_header("F32", (1 << 40, 1 << 40), 8) + bytes(8),
    "a shape of 4 billion axes": b"\x81\xa1a\xc7\x06\x01\x93\xdd\xff\xff\xff\xff",
    "many axes": b"\x81\xa1a" + array_header("F32", (1,) * 15, 4) + bytes(4),
    "fewer elements than the shape says": b"\x81\xa1a" + array(shape=(3,)),
    "an unknown type": b"\x81\xa1a\xc7\x14\x01\x93\x91\x02\xa6object\xc4\x08" + bytes(8),
    "a key that is a number": b"\x81\x01" + array(),
    "a key with a slash": b"\x81\xa3a/b" + array(),
    "an empty key": b"\x81\xa0" + array(),
    "a key with a line break": b"\x81\xa2a\n" + array(),
    "a key that is no text": b"\x81\xa2\xff\xfe" + array(),
    "a key of 4 GB": b"\x81\xdb\xff\xff\xff\xff",
    "a long key": b"\x81\xda\x08\x00" + b"a" * 2048 + array(),
    "a name twice": b"\x82\xa1a" + array() + b"\xa1a" + array(),
    "bytes after the tree": b"\x81\xa1a" + array() + b"\x00",
    "pieces at the root": chunked(),
    "pieces of another shape": b"\x81\xa1a" + chunked(shape=b"\x81\xa10\x03"),
    "pieces without the flag": b"\x81\xa1a" + chunked(flag=b"\xc2"),
    "pieces that are no map": b"\x81\xa1a" + chunked(chunks=b"\x91" + array()),
    "no pieces": b"\x81\xa1a" + chunked(chunks=b"\x80"),
    "pieces of two types": b"\x81\xa1a" + chunked(chunks=b"\x82\xa10" + array() + b"\xa11" + array("F64", (1,))),
    "pieces out of order": b"\x81\xa1a" + chunked(chunks=b"\x81\xa11" + array()),
    "pieces with two axes": b"\x81\xa1a" + chunked(chunks=b"\x81\xa10" + array(shape=(1, 2))),
    "pieces nested in pieces": b"\x81\xa1a" + chunked(chunks=b"\x81\xa10" + chunked()),
    "pieces and more": b"\x81\xa1a\x84" + chunked()[1:] + b"\xa1z" + array(),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_ends_in_a_clear_error(raw, tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(raw)
    assert "truncated or damaged" in damage(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x81\xa1a\xc9\x7f\xff\xff\xff\x01\x93\x91\xce\x1f\xff\xff\xff\xa7float32\xc6\x7f\xff\xff\xe8",
        b"\x81\xa1a\xc7\x06\x01\x93\xdd\x04\x00\x00\x00",  # a list of 64 million sizes
    ],
)
def test_reading_takes_no_memory_for_what_a_file_claims(raw, tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(raw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert damage(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KB


def test_a_sparse_file_of_gigabytes_is_read_in_an_instant(tmp_path):
    path, count = tmp_path / "flax_model.msgpack", 3 << 30
    slots, literals, size = structure([("x", "F32", (count // 4,), count), ("y", "F32", (1,), 4)])
    with path.open("wb") as file:
        for position, data in literals.items():
            file.seek(position)
            file.write(data)
        file.truncate(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_structure(path, path.name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8192
    assert [sum(count for _, count in ranges) for _, ranges in found] == [count, 4]
    assert len(slots) == len(found[0][1]) + 1


def sharded(folder, weight_map, **files):
    for name, tensors in files.items():
        write(folder / f"{name}.msgpack", [(key, "F32", (1,), struct.pack("<f", 1.0)) for key in tensors])
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "BiGS"}')
    return open_checkpoint(resolve(folder), formats=("msgpack",))


def test_shards_are_read_by_their_index(tmp_path):
    (tmp_path / "empty.msgpack").write_bytes(b"\x80")
    found = sharded(tmp_path, {"a/b": "one.msgpack", "a/c": "two.msgpack"}, one=["a/b"], two=["a/c"])
    assert list(found.tensors) == ["a/b", "a/c"]


@pytest.mark.parametrize(
    ("weight_map", "files", "words"),
    [
        ({"a": "../one.msgpack"}, {}, "points outside"),
        ({"a": "one.msgpack", "b": "gone.msgpack"}, {"one": ["a"]}, "missing"),
        ({"a": "one.msgpack", "b": "one.msgpack"}, {"one": ["a"]}, "do not agree"),
        ({"a": "one.msgpack", "b": "two.msgpack"}, {"one": ["a"], "two": ["a", "b"]}, "stored twice, in"),
    ],
)
def test_an_index_that_lies_is_refused(weight_map, files, words, tmp_path):
    with pytest.raises(BadInputError, match=words):
        sharded(tmp_path, weight_map, **files)
