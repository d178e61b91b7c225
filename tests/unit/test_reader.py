"""Headers and indexes are hostile until checked: whatever the bytes, either the tensors or one clear error."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc

import pytest
import torch
from checkpoints import bits, convert, edit_json, read, read_json, rewrite, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from effconv.convert.errors import BadInputError, UnsupportedError
from effconv.convert.io.dtypes import SIZES
from effconv.convert.io.reader import open_checkpoint, parse_header
from effconv.convert.io.source import resolve
from tiny import save_tiny

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, 4), "c": torch.ones(3, dtype=torch.float16)}
INDEX = "model.safetensors.index.json"


def file_of(header: object, payload: int = 0) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(payload)


def entry(shape=(2,), dtype="F32", start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def parse(raw: bytes):
    return parse_header(raw, "model.safetensors", len(raw))


def open_folder(folder, **options):
    return open_checkpoint(resolve(folder), **options)


def test_a_header_of_the_library_is_read_as_the_library_wrote_it():
    raw = save(TENSORS)
    for tensor in parse(raw):
        stored = TENSORS[tensor.name]
        assert tensor.shape == tuple(stored.shape)
        assert raw[tensor.start : tensor.start + tensor.nbytes] == stored.numpy().tobytes()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "shorter than its header"),
        (b"1234567", "shorter than its header"),
        (struct.pack("<Q", 1 << 62) + b"{}", "the header claims"),
        (struct.pack("<Q", 200_000_000) + b"{}", "the header claims"),
        (struct.pack("<Q", 3) + b"{}", "the header claims"),
        (file_of(b"{]"), "not a JSON object"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b"\xff\xfe{\x00}\x00"), "not a JSON object"),
        (file_of(b"[" * 100_000), "not a JSON object"),
        (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not a JSON object"),
        (file_of({"a": 3}), "dtype, shape or data_offsets is missing"),
        (file_of({"a": {"dtype": "F32"}}), "dtype, shape or data_offsets is missing"),
        (file_of({"a": entry(dtype="F33")}, 8), "unknown dtype 'F33'"),
        (file_of({"a": entry(dtype=["F32"])}, 8), "dtype is not a string"),
        (file_of({"a": entry(shape=[-1])}, 8), "not a list of sizes"),
        (file_of({"a": entry(shape=[2.0])}, 8), "not a list of sizes"),
        (file_of({"a": entry(shape=[True, 2])}, 8), "not a list of sizes"),
        (file_of({"a": {**entry(), "shape": 2}}, 8), "not a list of sizes"),
        (file_of({"a": entry(shape=[1 << 60])}, 8), "not a list of sizes"),
        (file_of({"a": entry(start=8, stop=0)}, 8), "ends before it starts"),
        (file_of({"a": {**entry(), "data_offsets": [0]}}, 8), "not two sizes"),
        (file_of({"a": entry(shape=[3])}, 8), "8 bytes stored, 12 needed"),
        (file_of({"a": entry(), "b": entry(start=4, stop=12)}, 12), "b: starts at byte 4, not 8"),
        (file_of({"a": entry(), "b": entry(start=12, stop=20)}, 20), "b: starts at byte 12, not 8"),
        (file_of({"a": entry(start=8, stop=16)}, 16), "a: starts at byte 8, not 0"),
        (file_of({"a": entry()}, 7), "its header describes"),
        (file_of({"a": entry()}, 9), "its header describes"),
        (file_of({"\ud800": entry()}, 8), r"\ud800: not a valid tensor name"),
        (file_of({"\x1b[2J": entry()}, 8), r"\x1b[2J: not a valid tensor name"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, str) else "file",
)
def test_a_damaged_header_is_named(raw, says):
    with pytest.raises(BadInputError) as caught:
        parse(raw)
    assert says in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_all_faults_of_a_header_are_listed_together():
    with pytest.raises(BadInputError) as caught:
        parse(file_of({"a": entry(dtype="F33"), "b": 3, "c": entry(shape=[9])}, 8))
    assert [f"\n    {name}: " in str(caught.value) for name in "abc"] == [True] * 3


def test_an_empty_tensor_may_share_its_place_with_the_next():
    header = {"full": entry(), "empty": entry(shape=[0, 3], start=0, stop=0), "end": entry(shape=[0], start=8, stop=8)}
    assert [tensor.name for tensor in parse(file_of(header, 8))] == ["empty", "full", "end"]


NUMBERS = st.one_of(st.integers(-2, 40), st.integers(), st.booleans(), st.floats(), st.none(), st.text(max_size=3))
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(sorted(SIZES)), st.text(max_size=4), st.lists(NUMBERS, max_size=2)),
            "shape": st.one_of(st.lists(NUMBERS, max_size=10), NUMBERS),
            "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS),
        }
    ),
    NUMBERS,
    st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3),
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=80), st.dictionaries(st.text(max_size=4), ENTRIES, max_size=4)), st.integers(0, 60))
def test_any_header_gives_tensors_inside_the_file_or_one_error(header, payload):
    raw = header + bytes(payload) if isinstance(header, bytes) else file_of(header, payload)
    check_parse(raw)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 40))
def test_a_sound_file_with_changed_bytes_gives_tensors_inside_the_file_or_one_error(changes, cut):
    raw = bytearray(save(TENSORS))
    for place, value in changes:
        raw[place % len(raw)] = value
    check_parse(bytes(raw[: len(raw) - cut]))


def check_parse(raw: bytes) -> None:
    tracemalloc.start()
    try:
        tensors = parse(raw)
    except BadInputError:
        tensors = []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    ends = 8 + int.from_bytes(raw[:8], "little")
    for tensor in tensors:  # they tile the payload: nothing overlaps, nothing lies outside
        assert tensor.start == ends
        ends += tensor.nbytes
    assert not tensors or ends == len(raw)


def test_a_huge_claim_costs_no_memory(tmp_path):
    source = save_tiny(tmp_path / "source")
    (source / "model.safetensors").write_bytes(struct.pack("<Q", 99_000_000) + b"{}")
    tracemalloc.start()
    with pytest.raises(BadInputError, match="the header claims"):
        open_folder(source)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("reader") / "source")


@pytest.fixture
def sharded(model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((model / "config.json").read_bytes())
    return write(source, read(model), shards=3)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_missing_shards_are_all_named(form, sharded, tmp_path):
    write(sharded, read(sharded), form, shards=3)
    for name in sorted(sharded.glob("*-of-*"))[1:]:
        name.unlink()
    with pytest.raises(BadInputError, match="2 of 3 shards are missing") as caught:
        open_folder(sharded)
    assert "00002-of-00003" in str(caught.value)
    assert "00003-of-00003" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "a\\..\\x", "a\nb", "\x1b[2J", "", 3, None]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(name, sharded):
    index = read_json(sharded / INDEX)
    index["weight_map"]["cls.predictions.bias"] = name
    edit_json(sharded / INDEX, **index)
    with pytest.raises(BadInputError, match="points outside the source") as caught:
        open_folder(sharded)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards_that_do_not_hold_what_the_index_says_are_refused(form, sharded):
    write(sharded, read(sharded), form, shards=3)
    path = next(sharded.glob("*.index.json"))
    index = read_json(path)
    files = sorted(set(index["weight_map"].values()))
    moved = next(name for name, file in index["weight_map"].items() if file == files[0])
    index["weight_map"] |= {moved: files[1], "not.there": files[2]}
    edit_json(path, **index)
    with pytest.raises(BadInputError, match="do not agree") as caught:
        open_folder(sharded)
    assert f"{moved}: not in {files[1]}" in str(caught.value)
    assert f"not.there: not in {files[2]}" in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_in_two_shards_is_refused(form, sharded):
    tensors = read(sharded)
    write(sharded, tensors, form, shards=2)
    first, second = sorted(sharded.glob("*-of-*"))
    stored = {name: value.clone() for i, (name, value) in enumerate(tensors.items()) if i % 2 or i == 0}
    if form == "bin":
        torch.save(stored, second)
    else:
        second.write_bytes(save(stored))
    with pytest.raises(BadInputError, match=f"is stored twice, in {first.name} and in {second.name}"):
        open_folder(sharded)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", "[" * 5000])
def test_an_index_without_a_weight_map_is_refused(index, sharded):
    (sharded / INDEX).write_text(index)
    with pytest.raises(BadInputError, match=r"index\.json"):
        open_folder(sharded)


class Payload:
    """A pickle that runs a command when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_with_a_payload_is_refused_and_does_not_run(inside, legacy, model, tmp_path):
    source, marker = tmp_path / "source", tmp_path / "ran"
    source.mkdir()
    (source / "config.json").write_bytes((model / "config.json").read_bytes())
    content = {**read(model), "x": Payload(marker)} if inside else Payload(marker)
    torch.save(content, source / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInputError, match="contains more than plain tensors") as caught:
        open_folder(source)
    assert "mkdir" in str(caught.value)
    assert "--allow-pickle" in caught.value.hint
    assert not marker.exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_of_pickle_dump_is_refused_in_words_and_does_not_run(protocol, allow_pickle, model, tmp_path, recwarn):
    source, marker = tmp_path / "source", tmp_path / "ran"
    source.mkdir()
    (source / "config.json").write_bytes((model / "config.json").read_bytes())
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload(marker)}, protocol=protocol))
    with pytest.raises(BadInputError, match=r"written by pickle\.dump"):
        open_folder(source, allow_pickle=allow_pickle)
    assert not marker.exists()
    assert not [warning for warning in recwarn if "file an issue" in str(warning.message)]


def test_allow_pickle_loads_what_only_a_full_unpickling_can(model, tmp_path):
    import transformers

    source = tmp_path / "source"
    whole = transformers.BertForMaskedLM.from_pretrained(model)
    whole.config.save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((model / name).read_bytes())
    torch.save(whole, source / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="GLOBAL transformers"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", allow_pickle=True)
    convert(model, tmp_path / "plain")
    one, other = read(tmp_path / "out"), read(tmp_path / "plain")
    assert {name: bits(value) for name, value in one.items()} == {name: bits(value) for name, value in other.items()}


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("kind", ["empty", "text", "pointer", "cut zip", "cut pickle", "zip of nothing", "flipped"])
def test_a_damaged_bin_file_is_an_error_and_no_reason_to_trust_it(kind, allow_pickle, model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((model / "config.json").read_bytes())
    path = source / "pytorch_model.bin"
    write(source, read(model), "legacy" if kind == "cut pickle" else "bin")
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"<html>Not found</html>",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "cut zip": whole[: len(whole) // 2],
            "cut pickle": whole[: len(whole) // 2],
            "zip of nothing": b"PK\x05\x06" + bytes(18),
            "flipped": b"PK\x03\x04" + bytes(200),
        }[kind]
    )
    with pytest.raises(BadInputError) as caught:
        open_folder(source, allow_pickle=allow_pickle)
    assert "pytorch_model.bin" in str(caught.value)
    assert kind == "cut pickle" or "--allow-pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ([1, 2], BadInputError, "not a state dict"),
        ({"state_dict": {"a": torch.zeros(1)}}, BadInputError, "not a state dict"),
        ({1: torch.zeros(1)}, BadInputError, "not a state dict"),
        ({"\x1b": torch.zeros(1)}, BadInputError, "not a state dict"),
        ({"a": torch.eye(3).to_sparse()}, UnsupportedError, "a: sparse_coo"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, UnsupportedError, "a: complex64"),
        ({"a": torch.zeros(2, device="meta")}, UnsupportedError, "a: no data"),
    ],
)
def test_a_bin_file_of_anything_but_dense_tensors_is_refused(content, error, says, model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((model / "config.json").read_bytes())
    torch.save(content, source / "pytorch_model.bin")
    with pytest.raises(error, match=says):
        open_folder(source)


def test_tensors_of_a_bin_file_may_be_views_and_parameters(model, tmp_path):
    plain = tmp_path / "plain"
    convert(model, plain)

    def views(tensors):
        wide = {name: torch.cat([value, value]) for name, value in tensors.items()}
        return {name: torch.nn.Parameter(wide[name][: len(value)]) for name, value in tensors.items()}

    source = tmp_path / "source"
    source.mkdir()
    for path in model.iterdir():
        if path.suffix == ".json":
            (source / path.name).write_bytes(path.read_bytes())
    tensors = views(read(model))
    name = "cls.predictions.transform.dense.weight"
    tensors[name] = torch.nn.Parameter(tensors[name].detach().T.contiguous().T)
    torch.save(tensors, source / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    one, other = read(tmp_path / "out"), read(plain)
    assert {name: bits(value) for name, value in one.items()} == {name: bits(value) for name, value in other.items()}


def test_quantised_tensors_are_refused_by_name(tmp_path):
    source = save_tiny(tmp_path / "source")
    name = "bert.encoder.layer.0.output.dense.weight"
    rewrite(source, lambda tensors: {**tensors, name: tensors[name].to(torch.int8)})
    with pytest.raises(UnsupportedError, match=f"quantised:\n    {name}: I8"):
        convert(source, tmp_path / "out")
