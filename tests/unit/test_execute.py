"""What is written: the same bytes as the source's, the same every time, in shards of the size asked for."""

from __future__ import annotations

import errno
import hashlib
import os
import stat

import numpy as np
import pytest
import torch
from checkpoints import bits, convert, read, read_json, rewrite, same, snapshot, write, write_json
from safetensors import safe_open

from effconv.convert.errors import BadInputError, CheckFailedError
from effconv.convert.io import tensorfile
from tiny import save_tiny


@pytest.fixture
def source(tmp_path):
    return save_tiny(tmp_path / "source")


def test_copied_tensors_are_bitwise_equal(source, tmp_path):
    stored = {"nan": float("nan"), "-nan": -float("nan"), "-0": -0.0, "tiny": 1e-45, "inf": float("inf")}
    name = "bert.encoder.layer.0.output.dense.weight"

    def odd_values(tensors):
        tensors[name][0, : len(stored)] = torch.tensor(list(stored.values()))
        tensors[name].view(torch.int32)[1, 0] = 0x7F812345  # a signalling NaN, which any arithmetic would change
        return tensors

    rewrite(source, odd_values)
    result = convert(source, tmp_path / "out")
    before, after = read(source), read(tmp_path / "out")
    copied = [row for row in result.plan.rows if row.action == "copy"]
    assert len(copied) == 41
    assert all(bits(after[row.target]) == bits(before[row.sources[0]]) for row in copied)


def test_the_same_input_twice_gives_the_same_bytes(source, tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        convert(source, folder / "out", architecture="ForSequenceClassification", global_init="random")
    one, two = snapshot(tmp_path / "one" / "out"), snapshot(tmp_path / "two" / "out")
    assert one == two
    assert {"model.safetensors", "config.json", "tokenizer.json", "effconv.json", "modeling_lsg_bert.py"} <= one.keys()


def test_nothing_that_is_emitted_names_a_path_of_this_machine(source, tmp_path):
    convert(source, tmp_path / "out")
    assert not [name for name, content in snapshot(tmp_path / "out").items() if str(tmp_path).encode() in content]


def test_the_manifest_holds_the_hash_of_every_file(source, tmp_path):
    result = convert(source, tmp_path / "out", max_shard_size="30KB")
    files = snapshot(tmp_path / "out")
    del files["effconv.json"]
    manifest = read_json(tmp_path / "out" / "effconv.json")
    assert manifest["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert manifest["plan"]["sha256"] == result.plan.sha256
    weights = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["source"]["sha256"]["model.safetensors"] == weights
    assert manifest["measurements"]["checks"] == "not run"


@pytest.mark.parametrize("limit", ["1", "20KB", "64KiB"])
def test_shards_hold_no_more_than_asked_and_their_index_is_right(limit, source, tmp_path):
    convert(source, tmp_path / "whole")
    convert(source, tmp_path / "out", max_shard_size=limit)
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    files = sorted((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert [int(path.name[6:11]) for path in files] == list(range(1, len(files) + 1))
    for path in files:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            size = sum(file.get_tensor(name).nbytes for name in names)
        assert {index["weight_map"][name] for name in names} == {path.name}
        assert len(names) == 1 or size <= {"1": 1, "20KB": 20_000, "64KiB": 65_536}[limit]
    assert same(read(tmp_path / "out"), read(tmp_path / "whole"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read(tmp_path / "whole").values())


def test_the_file_is_as_the_library_would_lay_it_out(source, tmp_path):
    convert(source, tmp_path / "out")
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_files_have_the_modes_that_the_umask_gives(source, tmp_path):
    old = os.umask(0o027)
    try:
        convert(source, tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_where_the_system_cannot_copy_ranges_the_bytes_are_the_same(error, source, tmp_path, monkeypatch):
    convert(source, tmp_path / "plain")

    def refuse(*_args, **_named):
        raise OSError(error, os.strerror(error))

    if error is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    convert(source, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "plain")


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_short_reads_and_writes_lose_nothing(step, source, tmp_path, monkeypatch):
    convert(source, tmp_path / "plain")
    write_, copy = os.write, os.copy_file_range
    monkeypatch.setattr(os, "write", lambda file, data: write_(file, data[: 1000 * step]))
    monkeypatch.setattr(tensorfile, "COPY_STEP", 100 * step)
    monkeypatch.setattr(
        os, "copy_file_range", lambda one, other, count, **named: copy(one, other, max(count // 2, 1), **named)
    )
    convert(source, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "plain")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_stop_a_verified_conversion_and_are_all_named(value, form, source, tmp_path):
    names = ["bert.encoder.layer.1.output.dense.weight", "cls.predictions.bias"]
    tensors = read(source)
    for name in names:
        tensors[name].view(-1)[-1] = value
    write(source, tensors, form)
    with pytest.raises(CheckFailedError) as caught:
        convert(source, tmp_path / "out", verify=True)
    assert all(name in str(caught.value) for name in names)
    assert "--no-verify" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    result = convert(source, tmp_path / "out")
    assert result.findings == [f"{name} holds NaN or infinite values" for name in names]
    assert read_json(tmp_path / "out" / "effconv.json")["findings"] == result.findings
    assert np.isfinite(read(tmp_path / "out")["bert.embeddings.word_embeddings.weight"].numpy()).all()


def test_a_source_that_shrinks_while_it_is_read_is_an_error(source, tmp_path):
    def shrink(step, done, total):
        if step == "weights" and done == 0:
            with (source / "model.safetensors").open("r+b") as file:
                file.truncate(90_000)

    with pytest.raises(BadInputError, match=r"model\.safetensors"):
        convert(source, tmp_path / "out", progress=shrink)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_progress_counts_every_byte_once(source, tmp_path):
    seen = []
    result = convert(source, tmp_path / "out", progress=lambda *call: seen.append(call))
    weights = [(done, total) for step, done, total in seen if step == "weights"]
    assert weights[0] == (0, result.plan.bytes_out)
    assert weights[-1] == (result.plan.bytes_out, result.plan.bytes_out)
    assert weights == sorted(weights)
    assert list(dict.fromkeys(step for step, _, _ in seen)) == [
        *("source", "plan", "weights", "files", "manifest", "publish", "done")
    ]


def test_an_error_of_the_callers_own_callback_leaves_nothing_behind(source, tmp_path):
    def fail(step, done, total):
        if step == "weights" and done:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        convert(source, tmp_path / "new" / "deep" / "out", progress=fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_source_card_gives_license_and_language_and_survives_odd_front_matter(source, tmp_path):
    for number, (front, license_) in enumerate(
        {
            "license: mit\nlanguage: [en, de]": "license: mit",
            "license: mit\ndate: 2024-13-45": "",  # looks like a date, and is none
            "license: [": "",
            "- a\n- b": "",
            "[" * 3000: "",
        }.items()
    ):
        (source / "README.md").write_text(f"---\n{front}\n---\n# Model\n", encoding="utf-8")
        convert(source, tmp_path / str(number))
        assert license_ in (tmp_path / str(number) / "README.md").read_text(encoding="utf-8")


def test_the_card_shows_a_command_that_a_shell_takes(tmp_path):
    source = save_tiny(tmp_path / "my model; rm -rf")
    convert(source, tmp_path / "out", architecture="ForQuestionAnswering")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "effconv lsg 'my model; rm -rf' --max-len 128" in text
    assert "--architecture ForQuestionAnswering" in text


def test_config_fields_of_another_machine_or_of_the_sources_code_are_not_carried(source, tmp_path):
    config = read_json(source / "config.json")
    stale = {"_name_or_path": "/home/me/bert", "transformers_version": "4.1", "auto_map": {"AutoConfig": "evil.Evil"}}
    write_json(source / "config.json", {**config, **stale, "my_field": {"a": [1]}})
    convert(source, tmp_path / "out")
    emitted = read_json(tmp_path / "out" / "config.json")
    assert emitted["my_field"] == {"a": [1]}
    assert "_name_or_path" not in emitted
    assert "evil" not in str(emitted)
    assert emitted["model_type"] == "lsg-bert"
    assert emitted["max_position_embeddings"] == 128
