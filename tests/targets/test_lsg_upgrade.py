"""Sources that are LSG already: published repos and repos that effconv made keep their weights, and load today.

Published repos are built from recordings, in the layout that they have on the Hub: a dense model_type, LSG class names,
and a modeling file that no transformers of today can import.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import bits, convert, edit_config, read, read_json, rewrite
from environments import FIVE, FOUR_NIGHTLY
from lsg_goldens import COPY, FULL, RECORDED, faults, golden_folder, read_cases, run_worker
from safetensors.torch import load_file, save_file

import effconv
from effconv.convert.errors import BadInputError, UnsupportedError, UsageError
from effconv.convert.families.converted import converted
from effconv.convert.families.registry import FAMILIES
from effconv.inspection import inspect_source
from tiny import save_tiny, save_tiny_sentence_encoder

RECORDINGS = COPY / "conversion" / "bert__lsg_source"
GLOBALS, POSITIONS = (f"bert.embeddings.{name}_embeddings.weight" for name in ("global", "position"))
# Of a published config: its code and bookkeeping, and `use_cache`, which it left true although it keeps no cache.
NOT_OURS = {"auto_map", "base_model_prefix", "model_type", "torch_dtype", "transformers_version", "use_cache"}
BROKEN = "from transformers.models.bert.modeling_bert import *\nraise NameError('name math is not defined')\n"
each_family = pytest.mark.parametrize("family", RECORDED)


def upgrade(source, output, **options):
    return effconv.convert(source, "lsg", output=output, **{"verify": False, **options})


def published(family: str, folder: Path, expected: str = "expected.safetensors", source: str = "source") -> Path:
    """A repo as the published converter left it: recorded tensors over the recorded source's, its config, its code."""
    golden = golden_folder(family)
    folder.mkdir(parents=True)
    for name in (golden / source).iterdir():
        if name.suffix != ".safetensors":
            (folder / name.name).write_bytes(name.read_bytes())
    tensors = load_file(golden / source / "model.safetensors") | load_file(golden / expected)
    tensors.pop("global_rows_deterministic")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((golden / expected.replace(".safetensors", "_config.json")).read_bytes())
    (folder / f"modeling_lsg_{FAMILIES[family].code.module}.py").write_text(BROKEN)
    return folder


@pytest.mark.parametrize("case", ["resize", "resize_down", "keepfirst"])
def test_a_published_repo_becomes_what_the_published_converter_makes_of_it(case, tmp_path):
    recorded = read_json(RECORDINGS / f"conversion_{case}.json")
    keeps = {"keep_first_global_token": True} if "keep_first_global_token" in recorded["options"] else {}
    result = upgrade(RECORDINGS / "source", tmp_path / "out", max_length=recorded["max_sequence_length"], **keeps)
    expected, out, stored = (
        load_file(RECORDINGS / f"expected_{case}.safetensors"),
        read(tmp_path / "out"),
        read(RECORDINGS / "source"),
    )
    assert out.keys() == stored.keys()
    assert bits(out[GLOBALS][0]) == bits(stored[GLOBALS][0])
    assert expected.keys() <= out.keys()
    assert all(bits(tensor) == bits(expected.get(name, stored[name])) for name, tensor in out.items())
    config = read_json(tmp_path / "out" / "config.json")
    assert {name: config.get(name, "absent") for name in recorded_config(case)} == recorded_config(case)
    assert config["model_type"] == "lsg-bert"
    assert result.manifest["upgraded"]["global_tokens"] == ("kept first" if keeps else "kept")


def recorded_config(case: str) -> dict:
    config = read_json(RECORDINGS / f"expected_{case}_config.json")
    return {name: value for name, value in config.items() if name not in NOT_OURS}


def test_the_copy_holds_the_same_recordings():
    if not FULL.is_dir():
        pytest.skip("only the copy is at hand")
    files = [path for path in RECORDINGS.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        assert path.read_bytes() == (FULL / path.relative_to(COPY)).read_bytes(), path


@each_family
def test_an_upgrade_keeps_every_tensor_every_field_and_the_length(family, tmp_path):
    case = read_cases(golden_folder(family))[0]
    source = published(family, tmp_path / "source", case["expected"], case["source"])
    labels = {key: f"class {key}" for key in read_json(source / "config.json").get("id2label", "01")}
    edit_config(source, sparsity_type="stride", block_size=32, num_global_tokens=3, id2label=labels)
    result = upgrade(source, tmp_path / "out")
    stored, out = read(source), read(tmp_path / "out")
    assert out.keys() == stored.keys()
    assert all(bits(out[name]) == bits(stored[name]) for name in stored)
    before, after = read_json(source / "config.json"), read_json(tmp_path / "out" / "config.json")
    assert {name: after.get(name, "absent") for name in before.keys() - NOT_OURS} == {
        name: value for name, value in before.items() if name not in NOT_OURS
    }
    assert after["causal_globals"] == after["bos_pooling_padding"] == "published"
    assert not (tmp_path / "out" / f"modeling_lsg_{FAMILIES[family].code.module}.py").read_text().startswith("from")
    assert result.plan.counts().keys() == {"copy"}


@pytest.fixture(scope="session")
def upgraded_jobs(tmp_path_factory):
    """Jobs of the parity worker: each published repo upgraded once, its cases' options given when it is loaded."""
    jobs = []
    for family in RECORDED:
        found = {}
        copied = {case["name"] for case in read_cases(COPY / family if (COPY / family).is_dir() else FULL / family)}
        for case in read_cases(golden_folder(family)):
            if case["name"] not in copied or "cross" in case["name"]:
                continue
            if case["expected"] not in found:
                folder = tmp_path_factory.mktemp(family)
                source = published(family, folder / "source", case["expected"], case["source"])
                found[case["expected"]] = {"repo": str(upgrade(source, folder / "out").output), "cases": []}
            found[case["expected"]]["cases"].append(
                {
                    "name": f"{family}/{case['name']}",
                    "file": str(golden_folder(family) / case["file"]),
                    "auto_class": FAMILIES[family].head(case["head"]).auto,
                    "load": case["config"],
                    "has_pooler": any("pooler." in name for name in read(folder / "source")),
                }
            )
        jobs += found.values()
    return jobs


@pytest.fixture(scope="session", params=[FIVE, FOUR_NIGHTLY])
def upgraded_results(request, upgraded_jobs, tmp_path_factory):
    return run_worker(upgraded_jobs, tmp_path_factory.mktemp("worker"), request.param)


@pytest.mark.xdist_group("upgrade")
@each_family
def test_an_upgraded_repo_gives_the_published_numbers(family, upgraded_jobs, upgraded_results):
    found = {name: result for name, result in upgraded_results.items() if name.startswith(f"{family}/")}
    asked = {case["name"] for job in upgraded_jobs for case in job["cases"]}
    assert found
    assert found.keys() == {name for name in asked if name.startswith(f"{family}/")}
    assert not faults(found), "\n".join(faults(found))


def test_an_upgrade_is_verified_and_says_what_it_is(tmp_path):
    source = published("bert", tmp_path / "lsg-bert-512")
    result = effconv.convert(source, "lsg", output=tmp_path / "out", max_length=300)
    again = effconv.verify(tmp_path / "out", against=source)
    assert {check.name: check.passed for check in result.measured}["equal_to_source"] is True
    card, manifest = (tmp_path / "out" / "README.md").read_text(), read_json(tmp_path / "out" / "effconv.json")
    assert manifest["upgraded"]["published"] is True
    assert manifest["upgraded"]["architecture"] == "LSGBertForPreTraining"
    assert manifest["upgraded"]["options"]["max_length"] == 512
    assert not manifest["measurements"]["fidelity"]
    assert "**Upgraded.**" in card
    assert "from 512 to 300" in card
    assert "effconv lsg lsg-bert-512 --max-len 300\n" in card
    assert {check.name for check in again if not check.passed} == {"same_embedding"}  # no sentence encoder


@pytest.mark.parametrize(("length", "tensors"), [(None, 0), (40, 1), (300, 1)])
def test_a_repo_that_effconv_made_is_taken_again(length, tensors, tmp_path):
    source = save_tiny(tmp_path / "source", "roberta")
    made = {"sparsity_type": "lsh", "num_global_tokens": 2, "bos_pooling_padding": "published", "seed": 7}
    first = convert(source, tmp_path / "first", **made)
    again = upgrade(first.output, tmp_path / "again", **({"max_length": length} if length else {}))
    old, new = read(first.output), read(again.output)
    changed = [name for name in old if bits(old[name]) != bits(new[name])]
    assert len(changed) == tensors
    assert all(name.endswith("position_embeddings.weight") for name in changed)
    before, after = (read_json(folder / "config.json") for folder in (first.output, again.output))
    assert {name for name in before if before[name] != after[name]} == {
        "effconv",  # which names the source
        *(["max_position_embeddings"] if length else []),
    }
    assert after["lsh_seed"] == 7
    assert again.manifest["upgraded"]["published"] is False


def test_options_that_are_asked_for_take_the_place_of_the_sources(tmp_path):
    source = edit_config(published("bert", tmp_path / "source"), block_size=64, mask_first_token=True)
    options = {"block_size": 128, "mask_first_token": False, "causal_globals": "globals"}
    upgrade(source, tmp_path / "out", **options)
    config = read_json(tmp_path / "out" / "config.json")
    assert {name: config[name] for name in options} == options
    card = (tmp_path / "out" / "README.md").read_text()
    assert "effconv lsg source --block-size 128 --no-mask-first-token --causal-globals globals" in card


def test_globals_are_made_anew_when_asked(tmp_path):
    source = published("bert", tmp_path / "source")
    rewrite(source, lambda tensors: {**tensors, GLOBALS: torch.randn_like(tensors[GLOBALS])})
    dense = edit_config(source, model_type="bert")
    upgrade(source, tmp_path / "kept")
    upgrade(source, tmp_path / "first", keep_first_global_token=True)
    result = upgrade(source, tmp_path / "reset", reset_global_tokens=True)
    stored, kept, first, reset = (read(tmp_path / name)[GLOBALS] for name in ("source", "kept", "first", "reset"))
    words = read(dense)["bert.embeddings.word_embeddings.weight"]
    types = read(dense)["bert.embeddings.token_type_embeddings.weight"]
    cls = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]["[CLS]"]
    assert bits(kept) == bits(stored)
    assert bits(first[0]) == bits(stored[0])
    assert bits(first[1:]) == bits(reset[1:])
    assert torch.equal(reset[0], read(dense)[POSITIONS][0] + words[cls] + types[0])
    assert result.manifest["upgraded"]["global_tokens"] == "made"
    assert not [row for row in result.plan.rows if row.action == "new"]


@pytest.mark.parametrize("option", ["keep_first_global_token", "reset_global_tokens"])
def test_a_dense_source_has_no_globals_to_keep(option, tmp_path):
    with pytest.raises(UsageError, match="the source is not an LSG model") as caught:
        convert(save_tiny(tmp_path / "source"), tmp_path / "out", **{option: True})
    assert option.replace("_", "-") in caught.value.where


def test_a_source_without_its_globals_is_an_error(tmp_path):
    source = rewrite(
        published("bert", tmp_path / "source"), lambda tensors: {n: t for n, t in tensors.items() if n != GLOBALS}
    )
    with pytest.raises(BadInputError, match=r"global_embeddings.weight: missing"):
        upgrade(source, tmp_path / "out")
    assert upgrade(source, tmp_path / "out", reset_global_tokens=True).output.is_dir()


def test_what_the_published_code_makes_of_its_config_is_made_of_it_here(tmp_path):
    source = published("bert", tmp_path / "source")
    config = read_json(source / "config.json") | {"num_global_tokens": 700, "sparsity_type": None, "block_size": None}
    (source / "config.json").write_text(json.dumps(config))
    upgrade(source, tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert (config["num_global_tokens"], config["sparsity_type"], config["block_size"]) == (512, "none", 128)


def test_a_source_whose_options_make_no_sense_is_an_error_that_says_where(tmp_path):
    source = edit_config(published("bert", tmp_path / "source"), sparsity_factor=3)
    with pytest.raises(BadInputError, match=r"must be divisible by .*sparsity.factor 3") as caught:
        upgrade(source, tmp_path / "out")
    assert caught.value.where == "config.json"
    assert upgrade(source, tmp_path / "out", sparsity_factor=2).output.is_dir()


@pytest.mark.parametrize(
    "marks",
    [
        {"architectures": ["LSGBertForMaskedLM"]},
        {"base_model_prefix": "lsg"},
        {"auto_map": {"AutoModel": "modeling_lsg_bert.LSGBertModel"}},
        {"auto_map": {"AutoModel": "ccdv/lsg-bert-base-uncased-4096--modeling_lsg_bert.LSGBertModel"}},
    ],
)
def test_any_mark_of_the_published_code_is_enough(marks):
    assert converted({"model_type": "bert", **marks}).published
    assert converted({"model_type": "bert", "architectures": ["BertModel"], "auto_map": {"AutoModel": "b.C"}}) is None


def test_the_folder_is_named_after_the_source_not_twice_after_the_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = published("bert", tmp_path / "hub" / "lsg-bert-512")
    assert effconv.convert(source, "lsg", verify=False).output.name == "lsg-bert-512"
    assert effconv.convert(source, "lsg", verify=False, max_length=300).output.name == "lsg-bert-300"


def test_what_was_converted_is_told_by_the_form_of_its_model_type_whatever_the_target():
    for target in (*("lsg", "linformer", "lambda", "transnormer"), "somebodys-own"):
        for family in FAMILIES:
            found = converted({"model_type": f"{target}-{family}"})
            assert (found.target, found.family, found.published) == (target, family, False)
    assert converted({"model_type": "lsg-deberta-v2"}).family == "deberta-v2"  # refused with what to use instead
    assert converted({"model_type": "lambda-published"}).target == "lambda-published"
    for model_type in (None, 3, "", "bert", "-bert", "-bert-", "lsg-", "bigs-encoder", "BiGS", "lsg-of-nothing"):
        assert converted({"model_type": model_type}) is None


def test_no_architecture_of_transformers_passes_for_a_converted_one():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert len(CONFIG_MAPPING_NAMES) > 300
    assert [name for name in CONFIG_MAPPING_NAMES if converted({"model_type": name})] == []


def test_other_targets_refuse_what_was_converted_before(tmp_path):
    lsg = convert(save_tiny(tmp_path / "source"), tmp_path / "lsg").output
    linformer = effconv.convert(
        tmp_path / "source", "linformer", max_length=64, proj_dim=16, output=tmp_path / "linformer", verify=False
    ).output
    for source, target, words in (
        (lsg, "linformer", "already converted \\(to lsg\\)"),
        (published("bert", tmp_path / "published"), "lambda", "already converted \\(to lsg\\)"),
        (linformer, "lsg", "already converted \\(to linformer\\)"),
    ):
        with pytest.raises(UnsupportedError, match=words) as caught:
            effconv.plan(source, target)
        assert caught.value.exit_code == 3
    assert inspect_source(lsg).becomes == ["lsg"]
    assert inspect_source(tmp_path / "published").becomes == ["lsg"]
    assert inspect_source(linformer).becomes == []
    assert "already converted to linformer" in inspect_source(linformer).why_not


def test_a_conversion_of_a_converted_sentence_encoder_is_compared_with_it(tmp_path):
    """As the dense model of its weights, so that no code of the source runs."""
    source = save_tiny_sentence_encoder(tmp_path / "source")
    sizes = {"block_size": 16, "sparse_block_size": 16}
    effconv.convert(source, "lsg", output=tmp_path / "lsg", max_length=128, verify=False, **sizes)
    again = effconv.convert(tmp_path / "lsg", "lsg", output=tmp_path / "again", max_length=64)
    assert [check.passed for check in again.measured if check.name == "same_embedding"] == [True]
