"""Special tokens come from the tokenizer's files, whichever of them there are; a tokenizer cuts at the new length."""

from __future__ import annotations

import pytest
import torch
from checkpoints import bits, convert, edit_config, edit_json, read, read_json, write_json

from effconv.convert.errors import BadInputError
from effconv.convert.families.registry import FAMILIES
from effconv.convert.io.source import resolve
from effconv.convert.io.tokenizer import special_tokens
from tiny import save_tiny

FILES = {
    "bert": ["tokenizer.json", "vocab.txt"],
    "roberta": ["tokenizer.json", "vocab.json"],
}
NAMED = ("tokenizer_config.json", "special_tokens_map.json")


def tokens_of(source, family):
    return special_tokens(resolve(source), FAMILIES[family])


def keep(source, *names):
    """Leave only these of the tokenizer's files."""
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors", *names):
            path.unlink()


def rename(source, **tokens):
    """Names special tokens in both files that name them: without added_tokens_decoder, the second file counts."""
    for name in NAMED:
        edit_json(source / name, **tokens)


@pytest.mark.parametrize("named", [NAMED, NAMED[:1], NAMED[1:], ()])
@pytest.mark.parametrize(("family", "file"), [(family, file) for family in FILES for file in FILES[family]])
def test_ids_are_the_same_from_every_set_of_files(family, file, named, tmp_path):
    source = save_tiny(tmp_path / "source", family)
    keep(source, file, *named)
    got = tokens_of(source, family)
    from transformers import AutoTokenizer

    whole = AutoTokenizer.from_pretrained(save_tiny(tmp_path / "whole", family))
    assert (got.cls, got.mask, got.sep, got.pad) == (
        whole.cls_token_id,
        whole.mask_token_id,
        whole.sep_token_id,
        whole.pad_token_id,
    )
    assert got.bos == whole.bos_token_id


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_tokenizer_config_that_names_no_tokens_means_the_familys_own(family, tmp_path):
    """As bert-base-uncased and roberta-base are: their files leave the tokens to the class."""
    source = save_tiny(tmp_path / "source", family)
    before = tokens_of(source, family)
    (source / "special_tokens_map.json").unlink()
    write_json(source / "tokenizer_config.json", {"model_max_length": 512, "do_lower_case": True})
    assert tokens_of(source, family) == before


def test_tokens_under_other_names_are_found(tmp_path):
    source = save_tiny(tmp_path / "source")
    rename(source, mask_token={"content": "the", "lstrip": True}, cls_token="of")
    parsed = read_json(source / "tokenizer.json")
    vocab = parsed["model"]["vocab"]
    assert (tokens_of(source, "bert").mask, tokens_of(source, "bert").cls) == (vocab["the"], vocab["of"])


@pytest.mark.parametrize("decoder", [True, False])
def test_special_tokens_map_counts_where_transformers_reads_it(decoder, tmp_path):
    source = save_tiny(tmp_path / "source")
    edit_json(source / "special_tokens_map.json", mask_token="the")
    if decoder:
        edit_json(source / "tokenizer_config.json", added_tokens_decoder={"4": {"content": "[MASK]"}})
    from transformers import AutoTokenizer

    assert tokens_of(source, "bert").mask == AutoTokenizer.from_pretrained(source).mask_token_id


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_an_added_token_is_found_wherever_it_is_declared(file, tmp_path):
    source = save_tiny(tmp_path / "source")
    rename(source, mask_token="<hidden>")
    if file == "added_tokens.json":
        write_json(source / file, {"<hidden>": 7})
    elif file == "tokenizer_config.json":
        edit_json(source / file, added_tokens_decoder={"7": {"content": "<hidden>"}, "x": {}, "8": 3})
    else:
        added = [*read_json(source / file)["added_tokens"], {"id": 7, "content": "<hidden>"}, {}, 3, {"id": "x"}]
        edit_json(source / file, added_tokens=added)
    assert tokens_of(source, "bert").mask == 7


def test_a_unigram_vocabulary_is_read_by_place(tmp_path):
    source = save_tiny(tmp_path / "source", "roberta")
    pieces = [["<s>", 0], ["<pad>", 0], [], 3, ["<mask>", -1.5], [["x"], 0]]
    edit_json(source / "tokenizer.json", model={"type": "Unigram", "vocab": pieces}, added_tokens=[])
    found = tokens_of(source, "roberta")
    assert (found.bos, found.pad, found.mask) == (0, 1, 4)


def test_globals_start_from_the_tokens_that_the_tokenizer_names(tmp_path):
    source = save_tiny(tmp_path / "source")
    rename(source, mask_token="the", cls_token="of")
    convert(source, tmp_path / "out")
    stored, vocab = read(source), read_json(source / "tokenizer.json")["model"]["vocab"]
    words = stored["bert.embeddings.word_embeddings.weight"]
    positions = stored["bert.embeddings.position_embeddings.weight"]
    types = stored["bert.embeddings.token_type_embeddings.weight"]
    table = read(tmp_path / "out")["bert.embeddings.global_embeddings.weight"]
    assert bits(table[0]) == bits(positions[0] + words[vocab["of"]] + types[0])
    assert bits(table[8]) == bits(positions[1] + words[vocab["the"]] + types[0])  # rows 0 to 7 stand 64 positions apart


def test_without_a_mask_token_the_way_out_is_named_and_works(tmp_path):
    source = save_tiny(tmp_path / "source")
    rename(source, mask_token="<nowhere>")
    with pytest.raises(BadInputError, match="no mask token") as caught:
        convert(source, tmp_path / "out")
    assert "--global-init random" in caught.value.hint
    convert(source, tmp_path / "out", global_init="random")
    table = read(tmp_path / "out")["bert.embeddings.global_embeddings.weight"]
    assert table.shape == (512, 32)
    assert table.isfinite().all()


def test_a_mask_token_named_null_does_not_exist(tmp_path):
    source = save_tiny(tmp_path / "source")
    for name in NAMED:
        write_json(source / name, {**read_json(source / name), "mask_token": None})
    with pytest.raises(BadInputError, match="no mask token"):
        convert(source, tmp_path / "out")


def test_random_globals_follow_the_word_embeddings(tmp_path):
    source = save_tiny(tmp_path / "source", positions=512, hidden_size=8, num_attention_heads=2)
    convert(source, tmp_path / "one", global_init="random")
    convert(source, tmp_path / "again", global_init="random")
    convert(source, tmp_path / "other", global_init="random", seed=1)
    one, again, other = (
        read(tmp_path / name)["bert.embeddings.global_embeddings.weight"] for name in ("one", "again", "other")
    )
    assert bits(one) == bits(again)
    assert bits(one[0]) == bits(other[0])
    assert bits(one[1:]) != bits(other[1:])
    stored = read(source)
    words, types = (
        stored["bert.embeddings.word_embeddings.weight"],
        stored["bert.embeddings.token_type_embeddings.weight"],
    )
    order = sorted(range(512), key=lambda position: (position % 64, position // 64))
    drawn = (one - stored["bert.embeddings.position_embeddings.weight"][order] - 2 * types[0])[1:]
    spread = words.std(0) / 511**0.5
    assert ((drawn.mean(0) - words.mean(0)).abs() < 5 * spread).all()
    assert torch.allclose(torch.cov(drawn.T), torch.cov(words.T), atol=0.3 * words.var(0).max().item())


def test_no_beginning_token_at_all_is_an_error_that_says_what_to_add(tmp_path):
    source = save_tiny(tmp_path / "source")
    keep(source)
    with pytest.raises(BadInputError, match="no beginning-of-sequence token") as caught:
        convert(source, tmp_path / "out", global_init="random")
    assert "bos_token_id" in caught.value.hint
    convert(edit_config(source, bos_token_id=2), tmp_path / "out", global_init="random")


def test_a_token_beyond_the_vocabulary_is_an_error(tmp_path):
    source = save_tiny(tmp_path / "source")
    rename(source, mask_token="<hidden>")
    write_json(source / "added_tokens.json", {"<hidden>": 9999})
    with pytest.raises(BadInputError, match="mask token is 9999"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_emitted_tokenizer_cuts_at_the_new_length_and_splits_as_before(family, tmp_path):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    source = save_tiny(tmp_path / "source", family)
    cutting = Tokenizer.from_file(str(source / "tokenizer.json"))
    cutting.enable_truncation(16)  # MiniLM's file does this
    cutting.enable_padding(length=16)
    cutting.save(str(source / "tokenizer.json"))
    edit_json(source / "tokenizer_config.json", name_or_path="/home/me/model", tokenizer_file="/home/me/t.json")
    convert(source, tmp_path / "out")
    text = "the cat was in that house for an hour " * 40
    emitted = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert emitted.model_max_length == 128
    ids = emitted(text, truncation=True)["input_ids"]
    assert len(ids) == 128
    cutting.no_truncation()
    cutting.no_padding()
    assert emitted(text)["input_ids"] == cutting.encode(text).ids
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode(text).ids == cutting.encode(text).ids
    assert "/home/me" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))


def test_vocabulary_files_are_carried_byte_for_byte(tmp_path):
    source = save_tiny(tmp_path / "source", "roberta")
    convert(source, tmp_path / "out")
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 5000, '{"mask_token": "\\ud83d"}', "\ufeff{}"])
def test_a_damaged_tokenizer_file_is_named(name, text, tmp_path):
    source = save_tiny(tmp_path / "source")
    (source / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=name):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
