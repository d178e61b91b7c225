"""Cards: generated blocks and results are set, what a person wrote stays; and what an emitted repo never holds."""

from __future__ import annotations

import getpass
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import EvalResult
from places import ROOT
from safetensors.numpy import load_file, save_file

import effconv
from effconv.convert.errors import BadInputError
from effconv.convert.repo.card import add_to_card
from effconv.convert.repo.card_blocks import (
    OWN,
    blocks,
    front_matter,
    merged,
    named,
    with_block,
    with_field,
    with_results,
    without_scores,
)
from effconv.convert.repo.manifest import changed_files, read_manifest
from tiny import save_tiny, save_tiny_sentence_encoder

SMALL = {"max_length": 128, "block_size": 16, "sparse_block_size": 16}
CARD = """---
license: apache-2.0  # as the paper's
tags:
- mine

# a comment of mine
language: [en, de]
---

# A title of mine

Text before.

<!-- effconv:summary -->
Generated once.
<!-- /effconv:summary -->
Text between.
<!-- effconv:load -->
repo = "."
<!-- /effconv:load -->

Text after.
"""


def outside(text: str) -> str:
    """A card without what stands in its generated blocks."""
    return re.sub(r"(<!-- effconv:(\S+) -->).*?(<!-- /effconv:\2 -->)", r"\1\3", text, flags=re.DOTALL)


class TestBlocks:
    def test_a_block_is_replaced_and_nothing_else(self):
        new = with_block(CARD, "summary", "Generated\nagain.")
        assert blocks(new)["summary"] == "Generated\nagain."
        assert blocks(new)["load"] == blocks(CARD)["load"]
        assert outside(new) == outside(CARD)

    def test_a_new_block_stands_at_the_end_under_its_heading(self):
        new = with_block(CARD, "results", "| a | b |", heading="Results")
        assert new.startswith(CARD.rstrip())
        assert new.endswith("## Results\n\n<!-- effconv:results -->\n| a | b |\n<!-- /effconv:results -->\n")
        assert with_block(new, "results", "| a | b |", heading="Results") == new

    def test_line_ends_of_the_card_are_kept(self):
        windows = CARD.replace("\n", "\r\n")
        for new in (
            with_block(windows, "summary", "one\ntwo"),
            with_block(windows, "more", "one\ntwo", heading="More"),
            with_field(windows, "license", "mit"),
            with_field(windows, "model-index", [{"name": "x"}]),
        ):
            assert "\n" not in new.replace("\r\n", "")

    @pytest.mark.parametrize(
        "broken",
        [
            "<!-- effconv:a -->",
            "<!-- /effconv:a -->",
            "<!-- effconv:a --><!-- effconv:b --><!-- /effconv:b --><!-- /effconv:a -->",
            "<!-- effconv:a --><!-- /effconv:b -->",
            "<!-- effconv:a --><!-- /effconv:a --><!-- effconv:a --><!-- /effconv:a -->",
        ],
    )
    def test_blocks_that_do_not_match_are_an_error_with_a_place(self, broken):
        with pytest.raises(BadInputError, match="block") as caught:
            with_block(f"text\n{broken}\n", "a", "new")
        assert caught.value.where.startswith("README.md")

    def test_content_cannot_break_out_of_its_block(self):
        for name, content in (("a", "<!-- /effconv:a -->"), ("a b", "text"), ("", "text")):
            with pytest.raises(ValueError, match="block"):
                with_block(CARD, name, content)

    def test_a_card_that_a_person_wrote_in_gets_the_new_blocks_alone(self):
        ours = with_block(CARD.replace("A title of mine", "Ours"), "summary", "New.").replace(
            "license: apache-2.0", "license: mit"
        )
        ours = with_field(with_block(ours, "checks", "All hold."), "base_model", "a/b")
        new = merged(CARD, ours)
        assert blocks(new) == {**blocks(CARD), "summary": "New."}  # a block that they took out stays out
        assert front_matter(new) == {**front_matter(CARD), "base_model": "a/b"}
        assert outside(new).replace("base_model: a/b\n", "") == outside(CARD)

    def test_a_card_names_its_repo_in_the_lines_that_load_it_alone(self):
        card = CARD.replace('repo = "."', 'repo = "."\nrevision = "main"').replace("Text after.", 'repo = "."')
        new = named(card, "me/long", "next")
        assert blocks(new)["load"] == 'repo = "me/long"\nrevision = "next"'
        assert new.rstrip().endswith('repo = "."')
        assert named(new, "me/long", "next") == new
        assert named("no blocks\n", "me/long") == "no blocks\n"


class TestFrontMatter:
    def test_a_field_is_set_and_every_other_line_stays(self):
        new = with_field(CARD, "license", "mit")
        assert new == CARD.replace("license: apache-2.0  # as the paper's", "license: mit")
        new = with_field(CARD, "tags", ["a", "b"])
        assert new == CARD.replace("- mine", "- a\n- b")
        assert with_field(CARD, "license", "apache-2.0") == CARD

    def test_a_new_field_and_a_first_one(self):
        assert front_matter(with_field(CARD, "base_model", "a/b"))["base_model"] == "a/b"
        assert with_field("# Title\n", "license", "mit") == "---\nlicense: mit\n---\n\n# Title\n"
        assert with_field("---\n---\n# Title\n", "license", "mit") == "---\nlicense: mit\n---\n# Title\n"

    @pytest.mark.parametrize(
        "body",
        [
            "{license: apache-2.0, tags: [a]}",
            '"license": x\ntags: [a]',
            "license: |\n  long\n\n  text\ntags: [a]",
            "tags:\n- a\n",
        ],
    )
    def test_any_layout_of_yaml_reads_as_it_should_afterwards(self, body):
        card = f"---\n{body}\n---\nText.\n"
        new = with_field(card, "license", "mit")
        assert front_matter(new) == {**front_matter(card), "license": "mit"}
        assert new.endswith("---\nText.\n")

    @pytest.mark.parametrize("body", ["license: [", "- a list", "license: *undefined", "text"])
    def test_front_matter_that_cannot_be_read_is_an_error(self, body):
        with pytest.raises(BadInputError):
            with_field(f"---\n{body}\n---\n", "license", "mit")


def measured(metric: str, value: float) -> EvalResult:
    return EvalResult("fill-mask", "wikitext", "wikitext", metric, value, dataset_split="test")


class TestResults:
    ACCURACY = measured("accuracy", 0.5)

    def test_results_are_added_and_replaced_without_touching_others(self):
        theirs = {
            "name": "mine",
            "results": [
                {
                    "task": {"type": "fill-mask"},
                    "dataset": {"type": "x", "name": "x"},
                    "metrics": [{"type": "f1", "value": 1}],
                }
            ],
        }
        card = with_field(CARD, "model-index", [theirs])
        card = with_results(card, "long", [self.ACCURACY, measured("f1", 0.25)])
        card = with_results(card, "long", [measured("accuracy", 0.75)])
        (index,) = front_matter(card)["model-index"]
        assert index["name"] == "mine"
        assert index["results"] == [
            *theirs["results"],
            {
                "task": {"type": "fill-mask"},
                "dataset": {"type": "wikitext", "name": "wikitext", "split": "test"},
                "metrics": [{"type": "f1", "value": 0.25}, {"type": "accuracy", "value": 0.75}],
            },
        ]
        assert outside(re.sub(r"model-index:\n(?:(?:- | ).*\n)+", "", card)) == outside(CARD)

    def test_what_is_written_is_what_the_client_reads(self):
        from huggingface_hub import ModelCard

        card = ModelCard(with_results(CARD, "long", [self.ACCURACY]))
        (result,) = card.data.eval_results
        assert (card.data.model_name, result.metric_type, result.metric_value) == ("long", "accuracy", 0.5)
        assert (result.dataset_type, result.dataset_split, result.task_type) == ("wikitext", "test", "fill-mask")

    def test_scores_of_weights_that_were_trained_since_are_taken_out_and_others_stay(self):
        own = EvalResult("fill-mask", "own", "own", "accuracy", 0.5, **OWN)
        card = with_block(with_results(CARD, "long", [own]), "eval", "a table", heading="Scores on tasks")
        plain = without_scores(card)
        assert "model-index" not in front_matter(plain)
        assert "effconv eval" in blocks(plain)["eval"]
        assert without_scores(plain) == plain
        card = with_results(card, "long", [self.ACCURACY])
        (index,) = front_matter(without_scores(card))["model-index"]
        assert [result["dataset"]["type"] for result in index["results"]] == ["wikitext"]
        assert without_scores(CARD) == CARD

    def test_a_model_index_that_is_none_is_an_error(self):
        with pytest.raises(BadInputError, match="model-index"):
            with_results(with_field(CARD, "model-index", "text"), "long", [self.ACCURACY])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    source = save_tiny_sentence_encoder(folder / "source")
    card = (
        "---\nlicense: other\nlicense_name: mine\nlanguage: [en, de]\ndatasets: [a/b]\ntags: [theirs]\n---\n# Source\n"
    )
    (source / "README.md").write_text(card)
    return effconv.convert(source, "lsg", output=folder / "long", verify=False, **SMALL).output


class TestEmittedCards:
    def test_the_front_matter_says_what_the_repo_is(self, encoder):
        found = front_matter((encoder / "README.md").read_text())
        assert found == {
            "license": "other",
            "license_name": "mine",
            "language": ["en", "de"],
            "datasets": ["a/b"],
            "library_name": "sentence-transformers",
            "pipeline_tag": "sentence-similarity",
            "tags": ["effconv", "lsg", "long-context", "custom_code", "sentence-transformers"],
        }

    def test_the_pipeline_tag_follows_the_head(self, tmp_path):
        for head, tag in (("ForSequenceClassification", "text-classification"), ("Model", "feature-extraction")):
            source = save_tiny(tmp_path / head, head=head)
            made = effconv.convert(source, "lsg", output=tmp_path / f"long-{head}", verify=False, **SMALL).output
            found = front_matter((made / "README.md").read_text())
            assert (found["pipeline_tag"], found["library_name"]) == (tag, "transformers")

    def test_the_lines_that_load_pin_a_revision_and_say_what_they_trust(self, encoder):
        lines = blocks((encoder / "README.md").read_text())["load"].splitlines()
        calls = [line for line in lines if "from_pretrained(" in line or "SentenceTransformer(" in line]
        assert len(calls) == 3
        assert all("revision=revision" in line and "trust_remote_code=True" in line for line in calls)

    def test_the_command_of_the_card_makes_the_same_repo(self, encoder, tmp_path):
        import shlex
        import subprocess
        import sys

        command = blocks((encoder / "README.md").read_text())["made"].split("```")[1].strip()
        words = shlex.split(command)
        assert words[0] == "effconv"
        run = [sys.executable, "-m", "effconv.cli", *words[1:], "--no-verify", "-o", str(tmp_path / "again")]
        subprocess.run(run, cwd=encoder.parent, check=True, capture_output=True)
        names = {path.relative_to(encoder).as_posix() for path in encoder.rglob("*") if path.is_file()}
        for name in names:
            assert (tmp_path / "again" / name).read_bytes() == (encoder / name).read_bytes(), name


TOKEN = "hf_" + "Z9" * 17
PARTS = ("parent-folder", "out-folder", "home-of-somebody", "somebody-by-name")
TARGETS = ["lsg", "linformer", "lambda", "transnormer"]


@pytest.fixture(scope="module")
def emitted(request, tmp_path_factory) -> Path:
    """A repo of each target, made by somebody whose source names their machine in every file that can."""
    target, folder = request.param, tmp_path_factory.mktemp("card")
    source = save_tiny_sentence_encoder(folder / "parent-folder" / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    private = {
        **dict.fromkeys(("_name_or_path", "name_or_path", "tokenizer_file", "cache_dir", "log"), str(source)),
        "nested": [{"path": "~/home-of-somebody/x", "windows": r"C:\home-of-somebody\x", "secret": TOKEN, "kept": 1}],
    }
    for path in sorted(source.rglob("*.json")):
        parsed = json.loads(path.read_text())
        if isinstance(parsed, dict) and path.name != "tokenizer.json":
            path.write_text(json.dumps(parsed | private))
    weights = source / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "path": str(source)})
    options = {"lsg": SMALL, "linformer": {"max_length": 128, "proj_dim": 32}}.get(target, {"max_length": 128})
    text = folder / "parent-folder" / "text.txt"
    text.write_text("the cat and the dog of that was for it on this " * 500)
    options = options | ({"calibrate": (text,)} if target in ("lambda", "transnormer") else {})
    options = options | {"verify": target == "lsg", "token": TOKEN}  # its measurements too
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HOME", str(folder / "home-of-somebody"))
        patch.setenv("USER", "somebody-by-name")
        patch.setenv("LOGNAME", "somebody-by-name")
        return effconv.convert(source, target, output=folder / "out-folder" / "long", **options).output


@pytest.mark.xdist_group("card-private")
@pytest.mark.parametrize("emitted", TARGETS, indirect=True)
class TestEveryTarget:
    def test_no_emitted_file_holds_a_path_the_users_name_or_a_token(self, emitted):
        """Not even where the source's own files hold them."""
        words = [str(emitted.parents[1]), str(ROOT), TOKEN, *PARTS]
        user = getpass.getuser()
        for path in sorted(emitted.rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                assert [word for word in words if word.encode() in data] == [], path.name
                if path.suffix in (".json", ".md") and not path.name.startswith(("tokenizer.json", "vocab")):
                    assert not re.search(rf"\b{re.escape(user)}\b".encode(), data), path.name
        assert json.loads((emitted / "1_Pooling" / "config.json").read_text())["nested"] == [{"kept": 1}]
        assert "base_model" not in front_matter((emitted / "README.md").read_text())

    def test_the_card_has_what_a_card_needs(self, emitted):
        card = (emitted / "README.md").read_text()
        front, found = front_matter(card), blocks(card)
        assert front["license"] == "mit"
        assert front["pipeline_tag"] == "sentence-similarity"
        assert list(found) == ["summary", "load", "attention", "checks", "fidelity", "made"]
        assert "128 tokens" in found["summary"]
        assert f"effconv {effconv.__version__}" in found["made"]

    def test_a_repo_of_today_needs_no_refresh(self, emitted):
        before = {path: path.read_bytes() for path in emitted.rglob("*") if path.is_file()}
        assert effconv.refresh(emitted, verify=False).changed == ()
        assert {path: path.read_bytes() for path in emitted.rglob("*") if path.is_file()} == before

    def test_a_later_command_adds_results_and_the_card_stays_effconvs(self, emitted, tmp_path):
        repo = Path(shutil.copytree(emitted, tmp_path / "repo"))
        before = (repo / "README.md").read_text()
        result = measured("accuracy", 0.5)
        add_to_card(repo, "speed", "| fast |", heading="Speed", results=[result])
        after = (repo / "README.md").read_text()
        assert blocks(after) == {**blocks(before), "speed": "| fast |"}
        assert front_matter(after)["model-index"][0]["name"] == "repo"
        assert changed_files(repo, read_manifest(repo)) == []
        assert effconv.refresh(repo, verify=False).changed == ()

        (repo / "README.md").write_text(after + "Mine.\n")
        add_to_card(repo, "speed", "| faster |")
        assert (repo / "README.md").read_text() == after.replace("| fast |", "| faster |") + "Mine.\n"
        assert changed_files(repo, read_manifest(repo)) == ["README.md: changed"]
