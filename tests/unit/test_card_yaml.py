"""Front matter is read as the Hub reads it, and what a card carries over is what the Hub takes."""

from __future__ import annotations

import pytest
import yaml
from checkpoints import convert
from huggingface_hub import ModelCard

from effconv.convert.repo.card_blocks import blocks, front_matter, joined, with_field
from effconv.convert.repo.card_yaml import carried, loaded
from tiny import save_tiny

FIELDS = ("license", "license_name", "language", "datasets")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("NO", "NO"),
        ("[nb, no, on]", ["nb", "no", "on"]),
        ("2023-05-01", "2023-05-01"),
        ("12:30:00", "12:30:00"),
        ("true", True),
        ("~", None),
        ("-3", -3),
        ("1.5e3", 1500.0),
        ("'1'", "1"),
        ("1_000", "1_000"),
    ],
)
def test_plain_words_are_those_of_yaml_1_2(text, value):
    assert loaded(text) == value
    assert type(loaded(text)) is type(value)
    assert yaml.safe_load(yaml.safe_dump(value)) == value  # what is written reads as the same in YAML 1.1


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        ({"language": "no"}, {"language": "no"}),
        ({"language": ["sv", None, 3, "", "no"]}, {"language": ["sv", "no"]}),
        ({"language": None, "license": "mit"}, {"license": "mit"}),
        ({"language": {"en": 1}, "datasets": [{"name": "a"}]}, {}),
        ({"license": ["mit", "gpl-3.0"], "license_name": ["x"]}, {"license": ["mit", "gpl-3.0"]}),
        ({"tags": ["mine"]}, {}),
    ],
)
def test_only_texts_are_carried_over(stated, kept):
    assert carried(stated, FIELDS) == kept


def test_a_byte_order_mark_is_no_part_of_a_card():
    card = "\ufeff---\nlanguage: no\n---\nText.\n"
    assert front_matter(card) == {"language": "no"}
    assert with_field(card, "license", "mit") == "---\nlanguage: no\nlicense: mit\n---\nText.\n"


@pytest.mark.parametrize(
    "card",
    [
        b"\xef\xbb\xbf---\nlanguage: [no, nn]\r\nlicense: cc-by-4.0\n---\n",
        b"---\r\nlanguage:\r\n  - no\r\n  - nn\r\nlicense: cc-by-4.0\r\n---\r\n",
    ],
)
def test_a_norwegian_source_gives_a_norwegian_repo(card, tmp_path):
    source = save_tiny(tmp_path / "source")
    (source / "README.md").write_bytes(card)
    convert(source, tmp_path / "out")
    data = ModelCard((tmp_path / "out" / "README.md").read_text(encoding="utf-8")).data
    assert (data.language, data.license) == (["no", "nn"], "cc-by-4.0")


@pytest.mark.parametrize(
    "card", [b"---\nlicense: [\n---\n", b"---\nlicense: mit\nText", b"\xff\xfe-\x00", b"- a\n---\n"]
)
def test_a_card_that_cannot_be_read_carries_nothing(card, tmp_path):
    source = save_tiny(tmp_path / "source")
    (source / "README.md").write_bytes(card)
    convert(source, tmp_path / "out")
    assert "license" not in front_matter((tmp_path / "out" / "README.md").read_text(encoding="utf-8"))


def test_a_card_of_another_program_keeps_its_text_and_gets_our_blocks_and_tags():
    theirs = "---\ntags:\n- mine\nwidget:\n- text: a\n---\n# Mine\n\nWords.\n"
    front = "---\ntags:\n- custom_code\n- mine\nlicense: mit\n---\n\n"
    ours = f"{front}# Long\n\n<!-- effconv:load -->\nhow\n<!-- /effconv:load -->\n"
    card = joined(theirs, ours)
    assert front_matter(card) == {"tags": ["mine", "custom_code"], "widget": [{"text": "a"}], "license": "mit"}
    assert "# Mine\n\nWords.\n\n# Long\n" in card
    assert blocks(card) == {"load": "how"}
    assert joined(card, ours.replace("how", "now")) == card.replace("how", "now")  # with our blocks it is merged
