"""BiGS repos of both sides on a loopback Hub: pushed, loaded by id, refreshed."""

from __future__ import annotations

import hashlib
import importlib.util
import json

import pytest
from bigs_goldens import ROOT, TOLERANCE, runs_of, to_jax, to_torch, worst
from hub_runs import Client, files_of
from safetensors.numpy import load_file
from same_models import TOLERANCE as SAME

import effconv
from effconv.convert.repo.card_blocks import blocks, front_matter
from hub_server import LoopbackHub

pytestmark = pytest.mark.xdist_group("bigs-hub")
CASE = "mlm_tied_L37"
SCRIPT = """
import json, sys
import numpy as np
from safetensors.numpy import load_file, save_file

inputs = load_file("inputs.safetensors")
import torch
from transformers import AutoModelForMaskedLM
with torch.no_grad():
    model = AutoModelForMaskedLM.from_pretrained("me/bigs-torch", trust_remote_code=True).eval()
    logits = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
found = {"torch": logits.numpy()}
if JAX:
    sys.path.insert(0, "jax")
    from modeling_bigs_jax import BiGSForMaskedLM
    model = BiGSForMaskedLM.from_pretrained("me/bigs-jax", revision="main")
    found["jax"] = np.asarray(model(**inputs)["logits"])
    model.save_pretrained("saved", max_shard_bytes=30_000)
    found["saved"] = np.asarray(BiGSForMaskedLM.from_pretrained("saved")(**inputs)["logits"])
    assert "effconv" not in sys.modules
save_file(found, "logits.safetensors")
print(json.dumps(sorted(found)))
"""


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repos")
    torch_repo = to_torch(CASE, folder / "torch")
    return {"torch": torch_repo, "jax": to_jax(torch_repo, folder / "jax")}


def test_repos_of_both_sides_are_pushed_and_loaded_by_id(repos, tmp_path):
    with LoopbackHub() as hub:
        client = Client(hub, tmp_path)
        for side, repo in repos.items():
            pushed = client.push(repo, f"me/bigs-{side}", "--license", "apache-2.0", "--json")
            assert pushed.code == 0, pushed.err
            assert not pushed.modules & {"torch", "jax", "flax"}
            (tmp_path / side).symlink_to(repo)
        back = client("jax2torch", "me/bigs-jax", "--no-verify", "-o", tmp_path / "back", token=None)
        assert back.code == 0, back.err
        assert not back.modules & {"torch", "jax", "flax"}
        for name in ("model.safetensors", "modeling_bigs.py", "tokenizer.json"):
            assert (tmp_path / "back" / name).read_bytes() == (repos["torch"] / name).read_bytes()
        configs = [json.loads((repo / "config.json").read_text()) for repo in (tmp_path / "back", repos["torch"])]
        origins = [config.pop("effconv") for config in configs]
        assert configs[0] == configs[1]
        assert origins[0]["source"]["hub_id"] == "me/bigs-jax"
        (tmp_path / "inputs.safetensors").symlink_to(ROOT / CASE / "inputs.safetensors")
        has_jax = bool(importlib.util.find_spec("jax") and importlib.util.find_spec("flax"))
        sides = client.python(SCRIPT.replace("JAX", str(has_jax)))
    assert sides == (["jax", "saved", "torch"] if has_jax else ["torch"])
    found, wanted = load_file(tmp_path / "logits.safetensors"), runs_of(CASE)[0][1]["logits"]
    assert all(worst({"logits": logits}, {"logits": wanted}) <= TOLERANCE for logits in found.values())
    if has_jax:
        assert worst({"logits": found["saved"]}, {"logits": found["jax"]}) <= SAME
        assert (tmp_path / "saved" / "modeling_bigs_jax.py").is_file()


def test_the_cards_say_how_each_side_is_loaded(repos):
    cards = {side: (repo / "README.md").read_text() for side, repo in repos.items()}
    fronts = {side: front_matter(card) for side, card in cards.items()}
    assert {side: front["library_name"] for side, front in fronts.items()} == {"torch": "transformers", "jax": "jax"}
    assert {side: front["pipeline_tag"] for side, front in fronts.items()} == dict.fromkeys(cards, "fill-mask")
    assert ("custom_code" in fronts["torch"]["tags"], "custom_code" in fronts["jax"]["tags"]) == (True, False)
    assert "AutoModelForMaskedLM.from_pretrained(repo" in cards["torch"]
    assert "from modeling_bigs_jax import BiGSForMaskedLM" in cards["jax"]
    assert "trust_remote_code" not in cards["jax"]
    for card in cards.values():
        assert "nothing is approximated" in blocks(card)["fidelity"]
        assert "tanh form of GELU" in blocks(card)["attention"]


@pytest.mark.parametrize("side", ["torch", "jax"])
def test_an_older_repo_is_refreshed(side, repos, tmp_path):
    old, today = tmp_path / "old", files_of(repos[side])
    for name, data in today.items():
        code = data + b"# older\n" if name.endswith(".py") else data
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_bytes(code)
    manifest = json.loads(today["effconv.json"])
    manifest["files"] |= {name: hashlib.sha256((old / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (old / "effconv.json").write_text(json.dumps(manifest))
    found = effconv.refresh(old, verify=False)
    assert {name for name in found.changed if name.endswith(".py")} == {n for n in today if n.endswith(".py")}
    after = files_of(old)
    assert after.keys() == today.keys()
    assert all(after[name] == data for name, data in today.items() if name not in ("README.md", "effconv.json"))
    assert json.loads(after["effconv.json"])["files"] == json.loads(today["effconv.json"])["files"] | {
        "README.md": hashlib.sha256(after["README.md"]).hexdigest()
    }
    assert effconv.refresh(old, verify=False).changed == ()
