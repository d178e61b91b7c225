"""A tokenizer of any form is carried whole: its class, its files, its settings and its code, which is not run."""

from __future__ import annotations

import pytest
from checkpoints import convert, edit_config, edit_json, read_json, write_json

import effconv
from effconv.adapt.refusals import require_objectives
from effconv.adapt.retrieval import retrieval
from effconv.convert.errors import BadInputError, UsageError
from effconv.convert.io.tokenizer import tokenizer_in
from effconv.convert.verify.loaded import DoesNotApply, Loaded
from effconv.convert.verify.token_checks import same_tokens
from effconv.hub.refresh import refresh
from effconv.inspection import inspect_source
from effconv.targets.registry import TARGETS
from tiny import save_tiny, wordpiece_vocab

STORED = ("config.json", "model.safetensors")
BERTS = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *wordpiece_vocab()[5:]]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PHOBERT = ["th@@", "the", *(f"{letter}@@" for letter in LETTERS), *LETTERS]
CODES = "#version: 0.2\nt h 9\nh e</w> 8\nth e</w> 7\n"
CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import PreTrainedTokenizer
from .deeper import cut as _  # from a folder, transformers 4 finds what a class imports directly
from .letters import cut
class Letters(PreTrainedTokenizer):
    vocab_files_names = {{"vocab_file": "letters.tsv"}}
    def __init__(self, vocab_file, **options):
        lines = pathlib.Path(vocab_file).read_text().splitlines()
        self.ids = {{line.split("\\t")[0]: i for i, line in enumerate(lines)}}
        super().__init__(**options)
    vocab_size = property(lambda self: len(self.ids))
    def get_vocab(self): return dict(self.ids)
    def _tokenize(self, text, **options): return cut(text)
    def _convert_token_to_id(self, token): return self.ids.get(token, 1)
    def _convert_id_to_token(self, i): return list(self.ids)[i]
    def build_inputs_with_special_tokens(self, one, other=None): return [2, *one, 3, *([*other, 3] if other else ())]
    def save_vocabulary(self, folder, filename_prefix=None): return ()
"""


def bare(folder, family="roberta", **config):
    """A tiny source without any of its tokenizer's files."""
    source = save_tiny(folder, family, "Model", **config)
    for path in source.iterdir():
        if path.name not in STORED:
            path.unlink()
    return source


def berts_vocabulary(folder, **config):
    """A RoBERTa with BERT's vocabulary, as several Chinese and Japanese checkpoints are."""
    source = bare(folder)
    (source / "vocab.txt").write_text("\n".join(BERTS) + "\n", encoding="utf-8")
    return edit_config(source, **config)


def phobert(folder):
    source = bare(folder)
    (source / "vocab.txt").write_text("".join(f"{word} 1\n" for word in PHOBERT), encoding="utf-8")
    (source / "bpe.codes").write_text(CODES, encoding="utf-8")
    write_json(source / "tokenizer_config.json", {"tokenizer_class": "PhobertTokenizer"})
    return source


def japanese(folder):
    source = bare(folder, "bert")
    (source / "vocab.txt").write_text("\n".join(wordpiece_vocab()) + "\n", encoding="utf-8")
    settings = {"do_word_tokenize": True, "subword_tokenizer_type": "character", "word_tokenizer_type": "basic"}
    write_json(source / "tokenizer_config.json", {**settings, "mecab_kwargs": {"mecab_dic": "ipadic"}})
    return edit_config(source, tokenizer_class="BertJapaneseTokenizer")


def own_code(folder, reference="tokenization_letters.Letters"):
    source = bare(folder, "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    (source / "letters.tsv").write_text("".join(f"{word}\t0\n" for word in words), encoding="utf-8")
    (source / "tokenization_letters.py").write_text(CODE.format(marker=str(folder.parent / "ran")), encoding="utf-8")
    (source / "letters.py").write_text("from .deeper import cut\n", encoding="utf-8")
    (source / "deeper.py").write_text("def cut(text):\n    return list(text[::-1])\n", encoding="utf-8")
    for name in ("train.py", "README.md", "training_args.bin", "eval_results.json"):
        (source / name).write_text("{}", encoding="utf-8")
    tokens = {f"{key}_token": f"[{key.upper()}]" for key in ("pad", "unk", "cls", "sep", "mask")}
    decoder = {str(i): {"content": word, "special": True} for i, word in enumerate(words[:5])}
    own = {"AutoTokenizer": [reference, None]}
    stated = {"tokenizer_class": "Letters", "auto_map": own, "added_tokens_decoder": decoder, **tokens}
    write_json(source / "tokenizer_config.json", stated)
    return source


def loaded(repo, source, trust=False):
    return Loaded(repo, source, read_json(repo / "effconv.json"), trust)


FORMS = {
    "phobert": (phobert, "PhobertTokenizer", {"vocab.txt", "bpe.codes"}),
    "japanese": (japanese, "BertJapaneseTokenizer", {"vocab.txt"}),
    "class in config.json": (
        lambda folder: berts_vocabulary(folder, tokenizer_class="BertTokenizerFast"),
        "BertTokenizerFast",
        {"vocab.txt"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_class_files_and_settings_are_the_sources(form, tmp_path):
    make, name, files = FORMS[form]
    source = make(tmp_path / "source")
    convert(source, tmp_path / "out")
    settings = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert settings["tokenizer_class"] == name
    if (source / "tokenizer_config.json").exists():
        assert read_json(source / "tokenizer_config.json").items() <= settings.items()
    assert set(tokenizer_in(tmp_path / "out").vocabulary) == files
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes()
    value, details = same_tokens(loaded(tmp_path / "out", source))
    assert value is None
    assert details["encodings"] > 30
    assert inspect_source(source).tokenizer == f"{name}: {', '.join(file for file in sorted(files, reverse=True))}"


def test_globals_start_from_the_tokens_of_the_named_class(tmp_path):
    """Not from the family's: <mask> is no word of this vocabulary."""
    source = berts_vocabulary(tmp_path / "source", tokenizer_class="BertTokenizer")
    result = convert(source, tmp_path / "out")
    assert result.plan.counts()["derive"] == 1


def test_vocabulary_files_of_another_class_are_refused_with_the_way_out(tmp_path):
    source = berts_vocabulary(tmp_path / "source")
    with pytest.raises(
        BadInputError, match=r"a RobertaTokenizer, which reads .* but the source has vocab.txt"
    ) as error:
        convert(source, tmp_path / "out")
    assert "tokenizer_class" in error.value.where
    write_json(source / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    convert(source, tmp_path / "out")


def test_a_tokenizer_that_tells_no_texts_apart_fails_its_check(tmp_path):
    """Both give special tokens alone: equal, and of no use."""
    source = save_tiny(tmp_path / "source", "bert", "Model")
    convert(source, tmp_path / "out")
    vocabulary = {word: i for i, word in enumerate(wordpiece_vocab()[:5])}
    for folder in (source, tmp_path / "out"):
        model = read_json(folder / "tokenizer.json")["model"]
        edit_json(folder / "tokenizer.json", model={**model, "vocab": vocabulary})
        (folder / "vocab.txt").unlink()
    with pytest.raises(AssertionError, match="no other ids than special tokens"):
        same_tokens(loaded(tmp_path / "out", source))


def test_code_of_its_own_is_carried_and_not_run(tmp_path):
    source = own_code(tmp_path / "source")
    result = convert(source, tmp_path / "out")
    found = tokenizer_in(tmp_path / "out")
    assert found.code == ("tokenization_letters.py", "deeper.py", "letters.py")
    assert found.vocabulary == ("letters.tsv",)
    for name in (*found.code, *found.vocabulary):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not {"train.py", "training_args.bin", "eval_results.json"} & {p.name for p in (tmp_path / "out").iterdir()}
    assert "tokenization_letters.py" in " ".join(result.findings)
    assert "was not run" in " ".join(result.findings)
    assert "Python code of its own (tokenization_letters.py" in inspect_source(source).tokenizer

    with pytest.raises(DoesNotApply, match=r"tokenization_letters.py.*only with --trust-remote-code"):
        same_tokens(loaded(tmp_path / "out", source))
    data = tmp_path / "text.txt"
    data.write_text("a text " * 900, encoding="utf-8")
    manifest = read_json(tmp_path / "out" / "effconv.json")
    for refused in (
        lambda: effconv.fidelity(tmp_path / "out", against=source, data=data),
        lambda: retrieval(tmp_path / "out", against=source, data=data, tokens=128),
        lambda: require_objectives(tmp_path / "out", manifest, TARGETS["lsg"], (), "all"),
    ):
        with pytest.raises(UsageError, match="tokenizer has Python code") as error:
            refused()
        assert "--trust-remote-code" in error.value.hint
    assert not (tmp_path / "ran").exists()

    _, details = same_tokens(loaded(tmp_path / "out", source, trust=True))
    assert (tmp_path / "ran").exists()
    assert details["without_trust_remote_code"].startswith("not compared")


def test_refresh_keeps_the_tokenizers_code(tmp_path):
    convert(own_code(tmp_path / "source"), tmp_path / "out")
    refreshed = refresh(tmp_path / "out", verify=False)
    assert refreshed.removed == ()
    assert (tmp_path / "out" / "deeper.py").exists()


def test_code_in_another_repo_stays_there(tmp_path):
    source = own_code(tmp_path / "source", "somebody/letters--tokenization_letters.Letters")
    (source / "tokenization_letters.py").unlink()
    result = convert(source, tmp_path / "out")
    auto_map = read_json(tmp_path / "out" / "tokenizer_config.json")["auto_map"]
    assert auto_map == {"AutoTokenizer": ["somebody/letters--tokenization_letters.Letters", None]}
    assert not (tmp_path / "out" / "letters.py").exists()
    assert "somebody/letters" in " ".join(result.findings)


def test_a_reference_in_config_json_counts_where_no_class_is_named(tmp_path):
    source = own_code(tmp_path / "source")
    settings = read_json(source / "tokenizer_config.json")
    del settings["auto_map"], settings["tokenizer_class"]
    write_json(source / "tokenizer_config.json", settings)
    edit_config(source, auto_map={"AutoTokenizer": ["tokenization_letters.Letters", None]})
    convert(source, tmp_path / "out")
    found = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert found["auto_map"] == {"AutoTokenizer": ["tokenization_letters.Letters", None]}
    assert found["tokenizer_class"] == "Letters"
    assert (tmp_path / "out" / "letters.py").exists()


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda source: (source / "tokenization_letters.py").unlink(), "tokenization_letters.py is missing"),
        (lambda source: (source / "lsg_attention.py").write_text("x = 1"), "also a file of the repo"),
    ],
)
def test_code_that_cannot_be_carried_is_named(break_it, says, tmp_path):
    source = own_code(tmp_path / "source")
    (source / "letters.py").write_text("from .lsg_attention import x\nfrom .deeper import cut\n", encoding="utf-8")
    break_it(source)
    with pytest.raises(BadInputError, match=says):
        convert(source, tmp_path / "out")


def test_a_tokenizer_json_for_some_versions_of_transformers_is_carried_and_cut_anew(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "Model")
    parsed = read_json(source / "tokenizer.json")
    cutting = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    write_json(source / "tokenizer.4.0.0.json", {**parsed, "truncation": cutting})
    edit_json(source / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json", "tokenizer.json"])
    convert(source, tmp_path / "out")
    assert read_json(tmp_path / "out" / "tokenizer.4.0.0.json")["truncation"] is None
    same_tokens(loaded(tmp_path / "out", source))


def test_a_generic_class_of_transformers_5_is_named_as_both_versions_know_it(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "Model")
    edit_json(source / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    convert(source, tmp_path / "out")
    assert read_json(tmp_path / "out" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
