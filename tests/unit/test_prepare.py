"""`effconv prepare`: what is in the folder, which shards it reads, and what it refuses. Nothing is left behind."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import shlex
import struct
from random import Random

import numpy as np
import pytest
from places import ROOT
from transformers import AutoTokenizer

import effconv
from effconv import cli
from effconv.convert.errors import BadInputError, EffconvError, HubError, OutputError, UsageError
from effconv.data.layouts import tokenizer_digest
from effconv.data.masking import IGNORED
from effconv.data.prepared import is_prepared, prepared_examples, read_record, require_fitting
from effconv.data.pretraining import pretraining_examples
from effconv.data.pretraining_options import PretrainingOptions
from effconv.data.shards import is_shard, shard_examples
from effconv.data.tfrecords import read_examples
from tiny import WORDS, save_tokenizer

h5py = pytest.importorskip("h5py")
pytest.importorskip("pyarrow")

PAGE = (ROOT / "docs" / "how-to" / "prepare.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_tokenizer(folder, "bert", 64)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def text(tmp_path):
    documents = ["\n".join(" ".join(WORDS[i:][: 3 + j]) for j in range(8)) for i in range(20)]
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(documents))
    return path


# The folder


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "mlm+sop", "masks": "static", "copies": 2, "shuffle": 30},
        {"objective": "mlm", "whole_words": True},
        {"objective": "clm", "across_documents": True},
    ],
)
def test_the_examples_of_a_prepared_corpus_are_those_of_the_texts(
    options, text, folder, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("effconv.data.prepared.GROUP_TOKENS", 300)
    monkeypatch.setattr("effconv.data.prepared.FILE_TOKENS", 500)
    options = {"length": 32, "heldout_share": 0.2, "seed": 5, **options}
    made = effconv.prepare(text, tokenizer=folder, output=tmp_path / "out", **options)
    assert is_prepared(str(made.output))
    assert len(list(made.output.glob("train-*.parquet"))) > 1
    for part in ("train", "heldout"):
        found = list(prepared_examples(made.output, part=part))
        wanted = list(pretraining_examples([str(text)], tokenizer, PretrainingOptions(**options), part=part))
        assert found == wanted
        counts = made.record[part]
        assert counts["examples"] == len(wanted)
        assert counts["tokens"] == sum(len(example["input_ids"]) for example in wanted)
        if "labels" in wanted[0]:
            assert counts["masked"] == sum(id != IGNORED for example in wanted for id in example["labels"])
    one, other = (list(prepared_examples(made.output, shuffle=50, epoch=epoch)) for epoch in (0, 1))
    key = json.dumps
    assert sorted(map(key, one)) == sorted(map(key, other)) == sorted(map(key, prepared_examples(made.output)))
    assert one != other


def test_the_record_says_what_was_done_and_two_runs_are_equal(text, folder, tokenizer, tmp_path):
    first, again = (
        effconv.prepare(text, tokenizer=folder, output=tmp_path / name, objective="mlm+nsp", masks="static", copies=2)
        for name in "ab"
    )
    files = [{path.name: path.read_bytes() for path in made.output.iterdir()} for made in (first, again)]
    assert files[0] == files[1]
    record = read_record(first.output)
    assert record == first.record
    assert record["tokenizer"]["sha256"] == tokenizer_digest(tokenizer)
    assert record["options"]["objective"] == "mlm+nsp"
    assert set(record["options"]) == {field.name for field in dataclasses.fields(PretrainingOptions)}
    assert record["texts"][0]["name"] == "texts.txt"
    assert set(record["files"]) == {path.name for path in first.output.glob("*.parquet")}


def test_a_corpus_that_does_not_fit_a_model_is_refused(text, folder, tokenizer, tmp_path):
    made = effconv.prepare(text, tokenizer=folder, output=tmp_path / "out", objective="mlm+sop", length=64).output
    digest = tokenizer_digest(tokenizer)
    require_fitting(made, digest, objective="mlm+sop", length=64)
    require_fitting(made, digest, objective="mlm")  # labels of pairs can be left alone
    for given, what in (
        ({"digest": "0"}, "another tokenizer"),
        ({"objective": "mlm+nsp"}, r"prepared for mlm\+sop, not for mlm\+nsp"),
        ({"objective": "clm"}, "not for clm"),
        ({"length": 32}, "examples of 64 tokens, and the model takes 32"),
    ):
        with pytest.raises(BadInputError, match=what):
            require_fitting(made, **{"digest": digest, **given})
    with pytest.raises(BadInputError, match="not a prepared corpus"):
        next(prepared_examples(tmp_path))
    file = next(made.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(BadInputError, match="a file of the corpus cannot be read"):
        list(prepared_examples(made))


def test_the_commands_and_the_code_of_the_guide_run(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = Random(0)
    articles = (
        f" = on {i} = \n" + "\n".join(" ".join(random.choices(WORDS, k=9)) + "." for _ in range(9)) for i in range(200)
    )
    (tmp_path / "wiki.txt").write_text("\n".join(articles))
    for command in re.findall(r"^```\n(effconv prepare wiki.*?)^```", PAGE, flags=re.M | re.S):
        arguments = shlex.split(command.replace("\\\n", " "))[1:]
        arguments[arguments.index("--tokenizer") + 1] = str(folder)
        cli.app(arguments, standalone_mode=False)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    exec(compile(code, "prepare.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "pairs with label 0 and 1" in printed
    assert re.search(r"^\d+ [01]$", printed, flags=re.M)


@pytest.mark.parametrize("row", re.findall(r"^\| .*?\| (`--objective.*?)\|$", PAGE, flags=re.M))
def test_the_options_of_the_recipes_are_options(row, text, folder, tmp_path):
    arguments = shlex.split(" ".join(re.findall(r"`(--[^`]*)`", row)))
    if "mlm+sop" in arguments:
        arguments.remove("mlm+sop")
    arguments = [{"heading": "blank"}.get(argument, argument) for argument in arguments]
    cli.app(
        ["prepare", str(text), "--tokenizer", str(folder), *arguments, "-o", str(tmp_path / "out")],
        standalone_mode=False,
    )
    assert is_prepared(str(tmp_path / "out"))


# What is refused


@pytest.mark.parametrize(
    ("options", "kind", "what"),
    [
        ({"tokenizer": None}, UsageError, "no tokenizer is given"),
        ({"tokenizer": "/nowhere/at/all"}, BadInputError, "no such folder"),
        ({"tokenizer": "nobody/nothing", "offline": True}, HubError, "not in the Hub cache of this machine"),
        ({"objective": "mlm+sop", "documents": "heading"}, BadInputError, "no heading found"),
        ({"objective": "mlm+nsp", "documents": "file"}, BadInputError, "a single document"),
        ({"heldout_share": 1e-9}, BadInputError, "no document is held out"),
        ({"lenght": 3}, UsageError, "prepare has no option lenght"),
        ({"length": 64, "shortest": 64}, UsageError, "--shortest must be less than --length, got 64 and 64"),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing_behind(options, kind, what, text, folder, tmp_path):
    with pytest.raises(kind, match=what) as raised:
        effconv.prepare(text, **{"tokenizer": folder, "output": tmp_path / "new" / "out", **options})
    assert raised.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_an_empty_text_and_a_missing_one_are_refused(folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, what in (("empty.txt", "contain no text"), ("missing.txt", "no such file"), ("a.hdf5", "no such file")):
        with pytest.raises(BadInputError, match=what):
            effconv.prepare(tmp_path / name, tokenizer=folder, output=tmp_path / "out")
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(UsageError, match="cannot be in one corpus"):
        effconv.prepare([tmp_path / "a.hdf5", tmp_path / "empty.txt"], tokenizer=folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_replaced_only_if_it_is_a_corpus_and_that_was_asked_for(text, folder, tmp_path):
    out = tmp_path / "out"
    effconv.prepare(text, tokenizer=folder, output=out)
    before = (out / "effconv-data.json").read_bytes()
    with pytest.raises(OutputError, match="not empty"):
        effconv.prepare(text, tokenizer=folder, output=out, length=16)
    assert (out / "effconv-data.json").read_bytes() == before
    effconv.prepare(text, tokenizer=folder, output=out, length=16, overwrite=True)
    assert read_record(out)["options"]["length"] == 16
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not a prepared corpus"):
        effconv.prepare(text, tokenizer=folder, output=tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").exists()


def test_a_run_that_ends_in_the_middle_leaves_no_folder(text, folder, tmp_path):
    def stop(step, done, total):
        if step == "moving the folder into place":
            assert any(path.name.startswith(".out.effconv-") for path in tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        effconv.prepare(text, tokenizer=folder, output=tmp_path / "out", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_what_a_killed_run_left_is_removed_by_the_next(text, folder, tmp_path):
    left = tmp_path / ".out.effconv-0123abcd"
    left.mkdir()
    (left / "train-00000.parquet").write_bytes(b"half")
    effconv.prepare(text, tokenizer=folder, output=tmp_path / "out")
    assert not left.exists()


# Shards


def shard_rows(count=7, length=32, most=5):
    """Examples as BiGS's and Cerebras's scripts write them: padded with zeros, with masked positions and ids."""
    random, rows = np.random.default_rng(0), []
    for _ in range(count):
        size = int(random.integers(8, length - 2))
        ids = np.zeros(length, np.int64)
        ids[: size + 2] = [2, *random.integers(60, 100, size), 3]
        places = np.sort(random.permutation(np.arange(1, size + 1))[: random.integers(1, most + 1)])
        true = ids[places].copy()
        ids[places] = 4
        mask = (np.arange(length) < size + 2).astype(np.int64)
        pad = (0, most - len(places))
        rows.append([ids, mask, np.zeros(length, np.int64), np.pad(places, pad), np.pad(true, pad)])
    return rows


def assert_examples_are(found, rows, label=None):
    assert len(found) == len(rows)
    for example, (ids, mask, segments, places, true) in zip(found, rows, strict=True):
        length = int(mask.sum())
        assert np.array_equal(example["input_ids"], ids[:length])
        assert np.array_equal(example["token_type_ids"], segments[:length])
        assert np.flatnonzero(example["special_tokens_mask"]).tolist() == [0, length - 1]
        wanted = {place: id for place, id in zip(places.tolist(), true.tolist(), strict=True) if place}
        assert {i: id for i, id in enumerate(example["labels"]) if id != IGNORED} == wanted
        assert example.get("next_sentence_label") == label


NAMES = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids")


@pytest.mark.parametrize("form", ["named", "one array"])
def test_hdf5_shards_of_bigs_are_read(form, tmp_path, monkeypatch):
    monkeypatch.setattr("effconv.data.shards.ROWS_AT_ONCE", 3)
    rows, path = shard_rows(), tmp_path / "train_shard_0.hdf5"
    with h5py.File(path, "w") as file:
        if form == "named":
            for place, name in enumerate(NAMES):
                file.create_dataset(name, data=np.stack([row[place] for row in rows]), compression="gzip", dtype="i4")
        else:
            array = file.create_dataset("data", (5, len(rows)), dtype=h5py.vlen_dtype(np.int32))
            for place in range(5):
                for number, row in enumerate(rows):
                    array[place, number] = row[place]
    assert is_shard(str(path))
    assert_examples_are(list(shard_examples(str(path), [2, 3])), rows)


def as_record(fields) -> bytes:
    """A tf.train.Example by Google's protobuf library, from a description made here."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = {"BytesList": 12, "FloatList": 2, "Int64List": 3}
    for name, kind in kinds.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=3, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(kinds, 1):
        feature.field.add(name=name, number=number, label=1, type=11, type_name=f".t.{name}", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".t.Feature")
    features.field.add(name="feature", number=1, label=3, type=11, type_name=".t.Features.FeatureEntry")
    file.message_type.add(name="Example").field.add(
        name="features", number=1, label=1, type=11, type_name=".t.Features"
    )
    pool.Add(file)
    example = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    for name, values in fields.items():
        first = values[0]
        kind = "BytesList" if isinstance(first, bytes) else "FloatList" if isinstance(first, float) else "Int64List"
        getattr(example.features.feature[name], kind).value.extend(values)
    return example.SerializeToString()


def write_records(path, records, zipped=False):
    """TFRecords by TensorBoard's writer."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for record in records:
        writer.write(record)
    writer.flush()
    path.write_bytes(gzip.compress(buffer.getvalue()) if zipped else buffer.getvalue())
    return path


def cerebras(row, *, label=None):
    ids, mask, segments, places, true = row
    fields = {"input_ids": ids, "input_mask": 1 - mask, "masked_lm_positions": places, "masked_lm_ids": true}
    fields = {name: values.tolist() for name, values in fields.items()}
    fields["masked_lm_weights"] = [float(place > 0) for place in places]
    if label is not None:
        fields |= {"segment_ids": segments.tolist(), "next_sentence_labels": [label]}
    return as_record(fields)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("label", [None, 1])
def test_tfrecords_of_cerebras_are_read_with_their_inverted_mask(label, zipped, tmp_path):
    rows = shard_rows()
    path = write_records(tmp_path / "examples.tfrecords-1", [cerebras(row, label=label) for row in rows], zipped)
    assert is_shard(str(path))
    assert_examples_are(list(shard_examples(str(path), [2, 3])), rows, label)


def test_every_kind_of_feature_is_read(tmp_path):
    fields = {"i": [0, 1, -1, 127, 128, 2**63 - 1, -(2**63)], "f": [0.5, -2.0], "b": [b"", b"caf\xc3\xa9"]}
    (found,) = read_examples(write_records(tmp_path / "a.tfrecord", [as_record(fields)]))
    assert found["i"].tolist() == fields["i"]
    assert found["f"].tolist() == fields["f"]
    assert found["b"] == fields["b"]


@pytest.mark.parametrize("damage", ["bit of the data", "bit of the length", "cut", "no example"])
def test_a_damaged_tfrecord_is_refused(damage, tmp_path):
    path = write_records(tmp_path / "a.tfrecord", [cerebras(row) for row in shard_rows(2)])
    data = bytearray(path.read_bytes())
    if damage == "no example":
        write_records(path, [b"\xff\xff\xff"])
    else:
        first = struct.unpack("<Q", data[:8])[0]
        data[{"bit of the data": first + 40, "bit of the length": 1, "cut": 0}[damage]] ^= damage != "cut"
        path.write_bytes(data[:-3] if damage == "cut" else data)
    with pytest.raises(BadInputError, match=r"checksum differs|not a tf.train.Example") as raised:
        list(read_examples(path))
    assert "a.tfrecord, record " in str(raised.value)


def test_shards_become_a_prepared_corpus(folder, tmp_path):
    rows = shard_rows()
    path = write_records(tmp_path / "a.tfrecord", [cerebras(row) for row in rows])
    made = effconv.prepare(path, tokenizer=folder, length=32, output=tmp_path / "out")
    assert_examples_are([{**one} for one in prepared_examples(made.output)], rows)
    assert made.record["options"] == {"objective": "mlm", "length": 32, "masks": "static"}
    for options, what in (
        ({"length": 16}, "more than --length 16"),
        ({"objective": "mlm+nsp", "length": 32}, "no next_sentence_labels"),
    ):
        with pytest.raises(BadInputError, match=what):
            effconv.prepare(path, tokenizer=folder, output=tmp_path / "other", **options)
    large = [ids.copy() for ids in rows[0]]
    large[0][3] = 5000
    write_records(path, [cerebras(large)])
    with pytest.raises(BadInputError, match="the token id 5000, and the tokenizer has only"):
        effconv.prepare(path, tokenizer=folder, length=32, output=tmp_path / "other")


def test_shards_of_another_form_are_refused(tmp_path):
    words = write_records(tmp_path / "a.tfrecord", [as_record({"tokens": [b"the", b"of"]})])
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["ids"] = np.zeros((3, 4))
    (tmp_path / "c.hdf5").write_bytes(b"nothing")
    empty = write_records(tmp_path / "d.tfrecord", [])
    for path, what in (
        (words, "no input_ids, input_mask.*masks made while training"),
        (tmp_path / "b.hdf5", "the HDF5 file has ids, neither input_ids"),
        (tmp_path / "c.hdf5", "cannot read the HDF5 file"),
        (empty, "the file has no examples"),
    ):
        with pytest.raises(EffconvError, match=what) as raised:
            list(shard_examples(str(path), [2, 3]))
        assert raised.value.exit_code == 4
