"""What the design promises of a conversion as a whole: all or nothing, nothing touched, nothing run, little memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from checkpoints import bits, convert, edit_json, read, read_json, snapshot, write_json
from places import SUPPORT
from tiers import daily

from effconv.convert.errors import BadInputError, OutputError, UsageError
from effconv.convert.families.grammar import shape_of
from effconv.convert.families.registry import FAMILIES
from tiny import save_tiny, save_tiny_sentence_encoder

EFFCONV = Path(sys.executable).with_name("effconv")
SMALL = ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("promises") / "source")


def drive(source, tmp_path, at, how, *, overwrite=False, journal=False):
    """The crash driver's findings: the moments at which it ended a conversion, and what was wrong."""
    job = {"source": str(source), "place": str(tmp_path / "place"), "at": at, "how": how}
    write_json(tmp_path / "job.json", {**job, "overwrite": overwrite, "journal": journal})
    command = [sys.executable, str(SUPPORT / "crash_driver.py"), str(tmp_path / "job.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert not found["faults"], "\n".join(found["faults"])
    return found["moments"]


def test_a_run_killed_at_any_step_leaves_nothing_and_the_next_one_succeeds(source, tmp_path):
    moments = drive(source, tmp_path, "steps", "kill")
    steps = {moment.rpartition(" ")[0] for moment in moments}
    assert {
        "source",
        "plan",
        "weights",
        "files",
        "verify",
        "verify: saved_again_equal",
        "manifest",
        "publish",
        "done",
    } <= steps
    assert sum(moment.startswith("weights") for moment in moments) >= 4  # within the weights too


@pytest.mark.parametrize(
    ("overwrite", "journal", "expected"),
    [
        (
            False,
            False,
            ["model.safetensors", "os.write", "os.copy_file_range", "effconv.json", "os.rename", "os.remove"],
        ),
        (True, False, ["ctypes.dlsym", "os.remove config.json", "os.rmdir"]),
        (True, True, ["open /.out.effconv.journal", "os.rename /out", "os.remove /.out.effconv.journal", "os.rmdir"]),
    ],
    ids=["new", "exchange", "journal"],
)
def test_a_run_killed_at_any_change_to_the_disk_leaves_all_or_nothing(overwrite, journal, expected, source, tmp_path):
    moments = drive(source, tmp_path, "disk", "kill", overwrite=overwrite, journal=journal)
    assert all(any(part in moment for moment in moments) for part in expected), moments


@pytest.mark.parametrize(
    ("overwrite", "journal"),
    daily([(False, False)], of=[(False, False), (True, False), (True, True)]),
)
def test_a_disk_that_is_full_from_any_moment_on_leaves_everything_as_it_was(overwrite, journal, source, tmp_path):
    moments = drive(source, tmp_path, "disk", "full", overwrite=overwrite, journal=journal)
    assert "os.fsync" in moments
    assert len(moments) > 15


def test_a_really_full_disk_is_named_and_left_as_it_was(source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of 128 KB cannot be mounted here")
    try:
        with pytest.raises(OutputError, match="not enough disk space"):  # as planned
            convert(source, disk / "out")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("effconv.convert.run.check_room", lambda *_: None)
            with pytest.raises(OutputError, match="the disk is full"):  # as found
                convert(source, disk / "out")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_bound_on_the_size_of_files_is_named(source, tmp_path):
    program = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from effconv.cli import main
sys.argv = ["effconv", "lsg", {str(source)!r}, "-o", "out", "--no-verify", "--max-len", "128"]
main()
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 7, run.stderr
    assert "--max-shard-size" in run.stderr
    assert not list(tmp_path.iterdir())


INTERRUPTED_AT_THE_WEIGHTS = """
import os, signal, sys, time
from effconv import cli
from effconv.report import console
class Interrupted(console.Progress):
    def __call__(self, step, done, total):
        super().__call__(step, done, total)
        if step == "weights" and SIGNAL:
            os.kill(os.getpid(), SIGNAL)  # as in the middle of the step
            time.sleep(0.2)
console.Progress = Interrupted
sys.argv = ["effconv", "lsg", *ARGUMENTS]
cli.main()
"""


@pytest.mark.parametrize(
    ("step", "number"), [("weights", signal.SIGINT), ("weights", signal.SIGHUP), ("verify", signal.SIGTERM)]
)
def test_ctrl_c_and_signals_that_end_a_run_leave_nothing_not_even_a_process(step, number, source, tmp_path):
    arguments = [str(source), "-o", "new/out", *SMALL]
    program = INTERRUPTED_AT_THE_WEIGHTS.replace("ARGUMENTS", repr(arguments))
    program = program.replace("SIGNAL", str(int(number)) if step == "weights" else "0")
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        said = []
        for line in run.stderr:
            said.append(line)
            if line.startswith(step):
                while run.poll() is None and not psutil.Process(run.pid).children():
                    time.sleep(0.01)  # until the process that loads the repo is there
                run.send_signal(number)
                break
        said += run.stderr.readlines()
    assert run.returncode == 128 + number, said
    assert "interrupted; no output was written" in said[-1]
    assert "Traceback" not in "".join(said)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def test_under_nohup_a_terminal_that_closes_ends_nothing(source, tmp_path):
    arguments = [str(source), "-o", "out", "--no-verify", *SMALL]
    program = INTERRUPTED_AT_THE_WEIGHTS.replace("ARGUMENTS", repr(arguments)).replace("SIGNAL", "signal.SIGHUP")
    program = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)" + program
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "effconv.json").is_file()


def test_the_source_is_never_touched(tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source")

    def state():
        return snapshot(source), {path: path.stat().st_mtime_ns for path in [source, *source.rglob("*")]}

    before = state()
    convert(source, tmp_path / "out", architecture="ForMaskedLM", dtype="bfloat16")
    with pytest.raises(UsageError):
        convert(source, tmp_path / "never", architecture="ForFun")
    with pytest.raises(OutputError):
        convert(source, tmp_path / "out")
    assert state() == before


@pytest.mark.parametrize("place", [".", "inside", "..", "../source"])
def test_an_output_at_inside_or_around_the_source_is_refused(place, tmp_path):
    source = save_tiny(tmp_path / "around" / "source")
    before = snapshot(tmp_path)
    run = subprocess.run(
        [EFFCONV, "lsg", source, "-o", source / place, "--overwrite", "--no-verify"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode in (2, 7), run.stderr
    assert "error: " in run.stderr
    assert snapshot(tmp_path) == before


def test_an_old_output_stays_until_the_new_one_is_complete(source, tmp_path):
    convert(source, tmp_path / "out", seed=1, architecture="ForQuestionAnswering")
    old = snapshot(tmp_path / "out")
    seen = set()

    def look(step, done, total):
        if step != "done":
            assert snapshot(tmp_path / "out") == old
        seen.add(step)

    with pytest.raises(OutputError, match="not empty"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", overwrite=True, progress=look)
    assert "publish" in seen
    assert snapshot(tmp_path / "out") != old
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def strangers_script(body: str) -> str:
    """A script that cannot import effconv, and that runs nothing of the site's start-up either."""
    return f"""
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "effconv":
            raise ImportError("no effconv here")
sys.meta_path.insert(0, Blocked())
import torch, transformers
{body}
"""


def run_as_stranger(body: str, folder: Path) -> str:
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", strangers_script(body)],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_repo_loads_without_effconv_and_only_when_its_code_is_trusted(source, tmp_path):
    convert(source, tmp_path / "out", max_shard_size="20KB")
    convert(source, tmp_path / "whole")
    edit_json(convert(source, tmp_path / "bare").output / "config.json", auto_map=None)
    output = run_as_stranger(
        """
def fails(folder, **options):
    try:
        transformers.AutoModelForMaskedLM.from_pretrained(folder, **options)
    except ValueError as error:
        return str(error)
    raise SystemExit(f"{folder} loaded with {options}")
assert "trust_remote_code" in fails("whole")
assert "trust_remote_code" in fails("whole", trust_remote_code=False)
assert "lsg-bert" in fails("bare", trust_remote_code=True)  # its own model_type: never taken for a dense BERT
tokenizer = transformers.AutoTokenizer.from_pretrained("out", trust_remote_code=True)
ids = tokenizer("the cat was in that house " * 30, return_tensors="pt", truncation=True)
outputs, tensors = [], []
for folder in ("out", "whole"):
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values()), info
    assert type(model).__name__ == "LSGBertForMaskedLM"
    with torch.no_grad():
        outputs.append(model.eval()(**ids).logits)
    tensors.append(model.state_dict())
assert outputs[0].shape[1] == 128 and torch.allclose(*outputs, rtol=0, atol=1e-6 * max(1, outputs[0].abs().max()))
assert tensors[0].keys() == tensors[1].keys()
assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
assert not any(name.split(".")[0] == "effconv" for name in sys.modules)
print("loaded")
""",
        tmp_path,
    )
    assert output.strip().endswith("loaded")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.py"))
    assert "import effconv" not in code
    assert "from effconv" not in code


def test_module_paths_of_a_sentence_encoder_cannot_leave_the_repo(tmp_path):
    for number, path in enumerate(["../outside", "/etc", "a/../../b", "x\\..\\y", "config.json", "model.safetensors"]):
        source = save_tiny_sentence_encoder(tmp_path / f"source{number}")
        modules = read_json(source / "modules.json")
        modules[1]["path"] = path
        write_json(source / "modules.json", modules)
        with pytest.raises(BadInputError, match=r"modules\.json"):
            convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def sparse_checkpoint(folder: Path, vocabulary: int, layers: int) -> int:
    """A BERT of base width whose weights are a hole in a file: its size in bytes."""
    folder.mkdir()
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": 768,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }
    write_json(folder / "config.json", config)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    header, stop = {}, 0
    bert = FAMILIES["bert"]
    for weight in bert.weights(config, bert.head("Model")):
        shape = shape_of(weight, config)
        size = 4
        for length in shape:
            size *= length
        header[weight.name] = {"dtype": "F32", "shape": shape, "data_offsets": [stop, stop + size]}
        stop += size
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + stop)
    return stop


@pytest.mark.parametrize(
    ("options", "bound"),
    [((), 80), (("--dtype", "bfloat16"), 120), (("--global-init", "random"), 120)],
    ids=["copied", "cast", "random globals"],
)
def test_memory_stays_small_whatever_the_size(options, bound, tmp_path):
    size = sparse_checkpoint(tmp_path / "source", 100_000 if not options else 40_000, 5)
    assert size > 2e6 * bound
    program = f"""
import atexit, sys
def peak():
    print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
atexit.register(peak)
from effconv.cli import main
sys.argv = ["effconv", "lsg", "source", "-o", "out", "--no-verify", *{options}]
main()
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    peak = int(run.stdout.splitlines()[-1]) / 1000
    assert peak < bound, f"{peak} MB"
    with contextlib.suppress(OSError):
        (tmp_path / "out" / "model.safetensors").unlink()  # half a gigabyte that nobody needs any more


def test_a_plain_conversion_imports_neither_torch_nor_transformers_nor_the_hubs_client(source, tmp_path):
    program = f"""
import sys
sys.argv = ["effconv", "lsg", {str(source)!r}, "-o", "out", "--no-verify", *{SMALL}]
from effconv.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
heavy = {{"torch", "transformers", "huggingface_hub", "safetensors"}}
print(sorted({{name.split(".")[0] for name in sys.modules}} & heavy))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr


def test_copied_tensors_equal_the_sources_for_every_family_of_the_first_slice(tmp_path):
    for family in ("bert", "roberta"):
        source = save_tiny(tmp_path / family, family)
        result = convert(source, tmp_path / f"{family}-out")
        before, after = read(source), read(tmp_path / f"{family}-out")
        copied = [row for row in result.plan.rows if row.action in ("copy", "rename")]
        assert copied
        assert all(bits(after[row.target]) == bits(before[row.sources[0]]) for row in copied)
