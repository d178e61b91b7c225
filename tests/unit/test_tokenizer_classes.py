"""The table of tokenizer classes says what the installed transformers says; ids from vocabulary files are its ids."""

from __future__ import annotations

import inspect

import pytest
import transformers
from checkpoints import write_json

from effconv.convert.errors import BadInputError
from effconv.convert.families.registry import FAMILIES
from effconv.convert.io.source import Source
from effconv.convert.io.tokenizer import special_tokens
from effconv.convert.io.tokenizer_classes import CLASSES, SPECIAL, class_named
from effconv.convert.io.vocabulary import read_pieces, token_ids

# Where the fast form, or one version of transformers, says less or other than the slow form.
OTHER_NAMES = {"BlenderbotSmall", "GPTNeoX", "Cohere", "FNet", "Gemma", "RemBert", "Qwen2", "Qwen3_5", "Bloom"}


def installed(name):
    """The class and its fast form, as far as they load without sentencepiece."""
    found = [getattr(transformers, form, None) for form in (name, f"{name}Fast")]
    return [form for form in found if inspect.isclass(form) and not type(form).__name__.startswith("Dummy")]


@pytest.mark.parametrize("name", CLASSES)
def test_files_and_special_tokens_are_those_of_transformers(name):
    for form in installed(name):
        files = {file for file in form.vocab_files_names.values() if file and file != "tokenizer_config.json"}
        assert files <= set(CLASSES[name].files)
        stated = {}
        for base in form.__mro__:  # a fast class may leave the names to the class that it is made from
            for key, parameter in inspect.signature(base.__init__).parameters.items():
                stated.setdefault(key, parameter.default)
        named = {key: stated[f"{key}_token"] for key in SPECIAL if isinstance(stated.get(f"{key}_token"), str)}
        if name.removesuffix("Tokenizer") not in OTHER_NAMES:
            assert named.items() <= CLASSES[name].special.items()


def test_the_table_is_compared_with_most_of_transformers():
    assert sum(bool(installed(name)) for name in CLASSES) > 40


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_of_every_family_is_known(family):
    kind = class_named(FAMILIES[family].tokenizer_class)
    assert kind is not None
    assert kind is class_named(FAMILIES[family].tokenizer_class + "Fast")
    assert FAMILIES[family].special_tokens.items() <= kind.special.items()


def field(number, wire, payload):
    size = [] if wire != 2 else varint(len(payload))
    return bytes([number << 3 | wire, *size]) + payload


def varint(value):
    return [value] if value < 128 else [value & 127 | 128, *varint(value >> 7)]


def sentencepiece_model(pieces):
    """A model as sentencepiece writes it: pieces with score and type, then the trainer's settings."""
    entries = (field(1, 2, piece.encode()) + field(2, 5, b"\0\0\x80\xbf") + field(3, 0, b"\x01") for piece in pieces)
    settings = field(1, 2, b"corpus.txt") + field(4, 0, b"\xc0\x84\x3d")
    return b"".join(field(1, 2, entry) for entry in entries) + field(2, 2, settings)


def ids(folder, name, files, settings=None):
    for file, content in files.items():
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    if settings:
        write_json(folder / "tokenizer_config.json", settings)
    names = tuple(sorted(path.name for path in folder.iterdir()))
    kind = class_named(name)
    found = token_ids(Source(name="x", files=names, fetch=lambda file: folder / file), kind, kind.special)
    return {key: found[token] for key, token in kind.special.items()}


WORDS = [f"▁word{i}" for i in range(63)]
PLAIN = ["<unk>", "<s>", "</s>", *WORDS]  # 66 pieces, as spm_train makes them
BERTS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *WORDS]  # 68, as ALBERT's
T5S = ["<pad>", "</s>", "<unk>", *WORDS]


@pytest.mark.parametrize(
    ("name", "pieces", "expected"),  # what transformers 4.57.6 and 5.23 give with sentencepiece 0.2.3
    [
        ("XLMRobertaTokenizer", PLAIN, {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 67}),
        ("MBartTokenizer", PLAIN, {"cls": 0, "pad": 1, "sep": 2, "mask": 92}),
        ("MBart50Tokenizer", PLAIN, {"cls": 0, "pad": 1, "sep": 2, "mask": 119}),
        ("CamembertTokenizer", PLAIN, {"bos": 5, "sep": 6, "pad": 1, "unk": 3, "mask": 70}),
        ("BarthezTokenizer", PLAIN, {"unk": 0, "bos": 1, "eos": 2, "pad": 66, "mask": 67}),
        ("AlbertTokenizer", BERTS, {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}),
        ("AlbertTokenizer", PLAIN, {"cls": 66, "sep": 67, "pad": 68, "mask": 69, "unk": 0}),
        ("BigBirdTokenizer", PLAIN, {"sep": 66, "pad": 67, "cls": 68, "mask": 69, "bos": 1}),
        ("DebertaV2Tokenizer", PLAIN, {"cls": 66, "sep": 67, "unk": 68, "pad": 69, "mask": 70}),
        ("XLNetTokenizer", BERTS, {"bos": 68, "sep": 70, "cls": 71, "mask": 72, "pad": 0}),
        ("PegasusTokenizer", T5S, {"pad": 0, "eos": 1, "mask": 3, "unk": 105}),
        ("T5Tokenizer", T5S, {"pad": 0, "eos": 1, "unk": 2}),
    ],
)
def test_ids_of_a_sentencepiece_model_alone(name, pieces, expected, tmp_path):
    file = next(file for file in CLASSES[name].files if file.endswith(".model"))
    found = ids(tmp_path, name, {file: sentencepiece_model(pieces)})
    assert expected.items() <= found.items()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        sentencepiece_model(PLAIN)[:-9],
        b"\x0a\xff\xff\xff",
        b"\x0a",
    ],
)
def test_a_damaged_sentencepiece_model_is_named(data, tmp_path):
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(BadInputError, match=r"spiece.model is not a sentencepiece model"):
        read_pieces(tmp_path / "spiece.model", "spiece.model")


LINES = "".join(f"{word} {count}\n" for count, word in enumerate(["và@@", "của", "là", "<mask>"]))


@pytest.mark.parametrize(
    ("name", "files", "settings", "expected"),
    [
        ("PhobertTokenizer", {"vocab.txt": LINES[:-9], "bpe.codes": ""}, {}, {"bos": 0, "pad": 1, "sep": 2, "mask": 7}),
        ("BertweetTokenizer", {"vocab.txt": LINES + "là 9\n"}, {}, {"cls": 0, "unk": 3, "mask": 7}),
        ("BartphoTokenizer", {"dict.txt": "▁và 2\n▁là 1\n"}, {}, {"pad": 1, "mask": 6}),
        ("BertJapaneseTokenizer", {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n猫\n"}, {}, {"cls": 2, "mask": 4}),
        (
            "BertJapaneseTokenizer",  # the model counts, whatever else is there
            {"vocab.txt": "[MASK]\n", "spiece.model": sentencepiece_model(["猫", *BERTS, "[PAD]", "[UNK]"])},
            {"subword_tokenizer_type": "sentencepiece"},
            {"cls": 3, "mask": 5, "pad": 69},
        ),
        ("EsmTokenizer", {"vocab.txt": "<cls>\n<pad>\n<eos>\n<unk>\nL\n<mask>\n"}, {}, {"cls": 0, "mask": 5}),
        ("BertTokenizer", {"vocab.txt": "[UNK]\r\n[SEP]\r\n[PAD]\r\n[CLS]\r\n\u2028\r\n[MASK]\r\n"}, {}, {"mask": 5}),
        ("RobertaTokenizer", {"vocab.json": '{"<s>":4,"<mask>":9,"</s>":1,"<pad>":0,"<unk>":2}'}, {}, {"mask": 9}),
        (
            "BertweetTokenizer",  # a class without a fast form does not read tokenizer.json
            {"vocab.txt": LINES, "tokenizer.json": '{"model": {"vocab": {"<mask>": 99}}}'},
            {},
            {"mask": 7},
        ),
    ],
)
def test_ids_of_the_other_forms(name, files, settings, expected, tmp_path):
    assert expected.items() <= ids(tmp_path, name, files, settings).items()


def test_a_vocabulary_without_counts_is_named(tmp_path):
    with pytest.raises(BadInputError, match=r"vocab.txt has a line without a count: 'hello'"):
        ids(tmp_path, "PhobertTokenizer", {"vocab.txt": "và 1\nhello\n"})


def special_ids(folder, family, files, settings):
    write_json(folder / "config.json", {"model_type": family})
    write_json(folder / "tokenizer_config.json", settings)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    names = tuple(sorted(path.name for path in folder.iterdir()))
    return special_tokens(Source(name="x", files=names, fetch=lambda file: folder / file), FAMILIES[family])


@pytest.mark.parametrize(
    ("family", "pieces", "settings", "mask"),  # what transformers 4.57.6 and 5.23 give
    [
        ("t5", T5S, {}, len(T5S) + 99),
        ("t5", T5S, {"extra_ids": 7}, len(T5S) + 6),
        ("t5", T5S, {"extra_ids": 0}, None),
        ("mt5", [*T5S, "▁<extra_id_0>"], {"extra_ids": 0}, len(T5S)),
        ("t5", None, {"tokenizer_class": "ByT5Tokenizer"}, 259),
    ],
)
def test_the_first_sentinel_stands_in_for_a_mask_token(family, pieces, settings, mask, tmp_path):
    files = {"spiece.model": sentencepiece_model(pieces)} if pieces else {}
    found = special_ids(tmp_path, family, files, {"tokenizer_class": "T5Tokenizer", **settings})
    assert (found.bos, found.pad, found.mask) == (1, 0, mask)


def test_a_stand_in_gets_no_id_where_the_vocabulary_lacks_it(tmp_path):
    """Where a class adds its missing special tokens behind the vocabulary, it does not add ours."""
    files = {"tokenizer.model": sentencepiece_model(["<unk>", "<s>", "</s>", "▁a"])}
    found = special_ids(tmp_path, "t5", files, {"tokenizer_class": "LlamaTokenizer"})
    assert (found.bos, found.mask) == (1, None)
