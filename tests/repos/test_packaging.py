"""A wheel built from a checkout holds what it must, no more, and works on its own in an empty folder."""

from __future__ import annotations

import os
import site
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from wheels import ROOT, build_wheel, run

from tiny import save_tiny

pytestmark = pytest.mark.xdist_group("packaging")  # one wheel for all of them


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment: the wheel, and the packages of this environment but for its effconv."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    binaries = folder / "bin"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        binaries / "python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is put on the path, while the .pth files in it (the editable effconv) are not read.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return binaries


OUTSIDE = ("benchmarks", "build", "demo-output", "dist", "docs", "examples", "tests")  # folders that are no packages


def names_in(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_source_file_and_every_template(wheel: Path):
    inits = (path.relative_to(ROOT) for path in ROOT.rglob("__init__.py"))
    packages = [ROOT, *(ROOT / path.parent for path in inits if not path.parts[0].startswith((".", *OUTSIDE)))]
    sources = {path for package in packages for kind in ("*.py", "*.jinja") for path in package.glob(kind)}
    sources |= {path for path in (ROOT / "templates").rglob("*") if path.suffix in (".py", ".jinja")}
    sources |= {path for package in packages for path in package.glob("data/*") if path.is_file()}
    expected = {f"effconv/{path.relative_to(ROOT).as_posix()}" for path in sources} | {"effconv/py.typed"}
    assert expected <= names_in(wheel)


def test_the_wheel_holds_no_tests_and_nothing_of_the_checkout(wheel: Path):
    names = names_in(wheel)
    assert {Path(name).suffix for name in names if name != "effconv/py.typed"} <= {".py", ".jinja", ".txt"}
    assert [name for name in names if not name.startswith("effconv/")] == []
    assert [name for name in names if name.split("/")[1] in OUTSIDE] == []


def test_the_wheel_carries_its_license_and_version(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (
            archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA")
        )
        licenses = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    assert "License-Expression: Apache-2.0" in metadata
    assert f"Version: {wheel.name.split('-')[1]}" in metadata
    assert len(licenses) == 1


def test_groups_stay_together(request):
    """Spread, each worker makes every costly fixture for itself.

    pytest-xdist does so without a word where pytest keeps ids in a place that it does not know.
    """
    if request.config.getoption("loadgroup", False):  # set in the workers
        assert request.node.nodeid.endswith("@packaging")


def test_the_installed_command_is_the_wheels(installed: Path, wheel: Path, tmp_path: Path):
    place = run(installed / "python", "-c", "import effconv; print(effconv.__file__)", cwd=tmp_path).stdout.strip()
    assert Path(place).is_relative_to(installed.parent)
    version = wheel.name.split("-")[1]
    assert version in run(installed / "effconv", "--version", cwd=tmp_path).stdout
    assert "lsg" in run(installed / "effconv", "targets", cwd=tmp_path).stdout


def test_the_installed_command_converts_in_an_empty_folder(installed: Path, tmp_path: Path):
    source = save_tiny(tmp_path / "source")
    empty = tmp_path / "empty"
    empty.mkdir()
    options = ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16", "-o", "long")
    run(installed / "effconv", "lsg", source, *options, cwd=empty)
    assert sorted(path.name for path in empty.iterdir()) == ["long"]
    assert {"config.json", "model.safetensors", "effconv.json", "README.md"} <= {
        p.name for p in (empty / "long").iterdir()
    }
    script = """
from transformers import AutoModelForMaskedLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("long", trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained("long", trust_remote_code=True)
inputs = tokenizer("the cat and the dog " * 20, return_tensors="pt", truncation=True)
print(*inputs["input_ids"].shape, *model(**inputs).logits.shape)
"""
    # Without effconv: the emitted repo needs transformers alone.
    shapes = run(sys.executable, "-c", f"import sys; sys.modules['effconv'] = None\n{script}", cwd=empty).stdout.split()
    assert shapes[:2] == ["1", "128"]
    assert shapes[2:4] == ["1", "128"]
