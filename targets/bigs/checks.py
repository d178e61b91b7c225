"""The checks of BiGS conversions, on torch and JAX repos.

Lengths stay where the float32 phases of slowly decaying kernels do not matter. JAX is used where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...convert.io.checkpoint import Checkpoint
from ...convert.io.reader import open_checkpoint
from ...convert.io.source import resolve
from ...convert.ops import Transpose
from ...convert.verify.checks import worst_of
from ...convert.verify.loaded import DoesNotApply, Loaded
from . import reference as bigs_reference
from .target import BIGS, DEFAULTS, JAX_CODE, operation

LONGEST = 64  # tokens: 37 of another length beside it, so that nothing rests on a round number
FORMATS = ("safetensors", "msgpack", "bin")


def equal_to_source(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The source's tensors and the repo's, both through the float64 formula: a lost or mixed-up tensor shows."""
    assert loaded.source is not None
    config = _config(loaded.repo)
    theirs = _params(loaded.source)
    ours = _params(loaded.repo)
    longest = min(_config(loaded.source)["max_position_embeddings"], config["max_position_embeddings"])
    head = _shared_head(loaded, theirs)
    found = []
    for length in _lengths(longest):
        inputs = _inputs(config, length, head == "ForMultipleChoice")
        wanted = bigs_reference.forward(theirs, config, head, **inputs)
        got = bigs_reference.forward(ours, config, head, **inputs)
        found += _differences(got, wanted)
    return worst_of(found), {"tokens": _lengths(longest)}


def torch_equals_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The torch model against the float64 formula on the repo's own tensors."""
    config, params = _config(loaded.repo), _params(loaded.repo)
    lengths = _lengths(config["max_position_embeddings"])
    found = []
    for length in lengths:
        inputs = _inputs(config, length, loaded.manifest["architecture"].endswith("ForMultipleChoice"))
        wanted = bigs_reference.forward(params, config, _suffix(loaded), **inputs)
        found += _differences(_run_torch(loaded.model(), inputs), wanted)
    return worst_of(found), {"tokens": lengths}


def frameworks_agree(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The same weights in JAX and in torch: the repo's own side by its own code, the other by effconv's templates."""
    config, params, architecture = _config(loaded.repo), _params(loaded.repo), loaded.manifest["architecture"]
    length = _lengths(config["max_position_embeddings"])[0]  # one: JAX compiles for each
    inputs = _inputs(config, length, architecture.endswith("ForMultipleChoice"))
    own_code = loaded.repo / f"{JAX_CODE.module}.py"
    jax = _has_jax()
    if own_code.is_file():
        torch_side = _template_outputs(config, params, architecture, inputs)
    else:
        torch_side = _run_torch(loaded.model(), inputs)
    if not jax:
        other = bigs_reference.forward(params, config, _suffix(loaded), **inputs)
    elif own_code.is_file():
        model = getattr(_module(own_code), architecture).from_pretrained(loaded.repo)
        other = _run_jax(model, inputs)
    else:
        other = _run_jax(_jax_model(config, params, architecture), inputs)
    details = {"tokens": [length], "jax": "run" if jax else "not installed: compared with the float64 implementation"}
    return worst_of(_differences(torch_side, other)), details


def every_tensor_read(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """Any length uses all tensors."""
    from ...convert.verify import family_checks

    return family_checks.every_tensor_read(loaded, LONGEST)


def every_jax_tensor_read(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """The same of a JAX repo, by its own code: a gradient that is not zero, else NaN that reaches an output.

    Raises:
        DoesNotApply: JAX is not installed.
        AssertionError: with the tensors that nothing reads.
    """
    if not _has_jax():
        raise DoesNotApply("jax is not installed")
    import jax
    import jax.numpy as jnp

    architecture = loaded.manifest["architecture"]
    model = getattr(_module(loaded.repo / f"{JAX_CODE.module}.py"), architecture).from_pretrained(loaded.repo)
    length = _lengths(_config(loaded.repo)["max_position_embeddings"])[0]
    inputs = _inputs(_config(loaded.repo), length, architecture.endswith("ForMultipleChoice"))

    def run(tree: Any) -> list[Any]:
        return [value for value in model(**inputs, params=tree).values() if hasattr(value, "shape")]

    def total(tree: Any) -> Any:
        keys = iter(jax.random.split(jax.random.PRNGKey(0), 16))
        return sum((value * jax.random.normal(next(keys), value.shape)).sum() for value in run(tree))

    paths, layout = jax.tree_util.tree_flatten_with_path(model.params)
    gradients = jax.tree_util.tree_leaves(jax.grad(total)(model.params))
    leaves = [leaf for _, leaf in paths]
    unread = []
    for index, ((path, leaf), gradient) in enumerate(zip(paths, gradients, strict=True)):
        if not bool(jnp.any(gradient != 0)):
            filled = [*leaves[:index], jnp.full_like(leaf, jnp.nan), *leaves[index + 1 :]]
            if not any(bool(jnp.isnan(value).any()) for value in run(jax.tree_util.tree_unflatten(layout, filled))):
                unread.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    if unread:
        raise AssertionError(f"no output depends on {len(unread)} of {len(paths)} tensors: {', '.join(unread[:4])}")
    return None, {"tensors": len(paths), "tokens": length, "exempt": {}}


def _has_jax() -> bool:
    return importlib.util.find_spec("jax") is not None and importlib.util.find_spec("flax") is not None


def _lengths(longest: int) -> list[int]:
    return sorted({min(longest, 37), min(longest, LONGEST)})


def _config(folder: Path) -> dict[str, Any]:
    return {**DEFAULTS, **json.loads((folder / "config.json").read_text(encoding="utf-8"))}


def _suffix(loaded: Loaded) -> str:
    return str(loaded.manifest["architecture"]).removeprefix("BiGS")


def _shared_head(loaded: Loaded, params: Mapping[str, Any]) -> str:
    """The suffix of the repo's class where the source has all of its head, else the base."""
    head = BIGS.head(_suffix(loaded))
    return head.suffix if {weight.name for weight in BIGS.head_weights(head)} <= params.keys() else "Model"


def _params(folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint of either side under canonical names, in torch's shapes and float64."""
    source = resolve(folder)
    checkpoint: Checkpoint = open_checkpoint(source, formats=FORMATS)
    try:
        params = {}
        for name, tensor in checkpoint.tensors.items():
            canonical = BIGS.canonical_name(name)
            if canonical is None or tensor.dtype.startswith("I"):
                continue
            array = checkpoint.read(name)
            array = operation(canonical).apply(array) if "/" in name else array
            wide = array.data if array.dtype == "F64" else array.float32()
            params[canonical] = np.array(wide, dtype=np.float64)
    finally:
        checkpoint.close()
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", True):
        params.pop("cls.predictions.decoder.weight", None)
    return params


def _inputs(config: Mapping[str, Any], length: int, choice: bool = False) -> dict[str, np.ndarray]:
    """Two texts, the second padded, from a fixed seed; three choices each where `choice`."""
    random = np.random.default_rng(length)
    shape = (2, 3, length) if choice else (2, length)
    ids = random.integers(min(10, config["vocab_size"] - 1), config["vocab_size"], shape)
    mask = np.ones(shape, dtype=np.int64)
    mask[1, ..., max(length // 2, 1) :] = 0
    types = (np.arange(length) > length // 3) * (config["type_vocab_size"] > 1) * np.ones(shape, dtype=np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types.astype(np.int64)}


def _differences(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[float]:
    """Max |a - b| / max(1, max |b|) of every output that both have."""
    names = got.keys() & wanted.keys()
    if not names:
        raise ValueError("no output to compare")
    found = []
    for name in sorted(names):
        a, b = np.asarray(got[name], dtype=np.float64), np.asarray(wanted[name], dtype=np.float64)
        found.append(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) if np.isfinite(a).all() else float("inf"))
    return found


def _run_torch(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        result = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in result.items() if isinstance(value, torch.Tensor)}


def _template_outputs(
    config: Mapping[str, Any], params: Mapping[str, np.ndarray], architecture: str, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    import torch

    from ...templates import configuration_bigs, modeling_bigs

    left_out = ("model_type", "auto_map", "architectures", "dtype")
    settings = {name: value for name, value in config.items() if name not in left_out}
    model = getattr(modeling_bigs, architecture)(configuration_bigs.BiGSConfig(**settings)).eval()
    prefix = "" if architecture == "BiGSModel" else "bigs."
    own = model.state_dict()
    state = {}
    for name in own:
        source = name.removeprefix(prefix)
        if source == "cls.predictions.decoder.weight" and source not in params:
            source = "embeddings.word_embeddings.weight"
        state[name] = torch.from_numpy(params[source]).float()
    model.load_state_dict(state)
    return _run_torch(model, inputs)


def _run_jax(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in model(**inputs).items() if hasattr(value, "shape")}


def _jax_model(config: Mapping[str, Any], params: Mapping[str, np.ndarray], architecture: str) -> Any:
    from ...templates import modeling_bigs_jax

    head = BIGS.head(architecture.removeprefix("BiGS"))
    tree: dict[str, Any] = {}
    for name, value in params.items():
        *branches, last = BIGS.flax_name(name, head).split("/")
        branch = tree
        for key in branches:
            branch = branch.setdefault(key, {})
        branch[last] = (value.T if isinstance(operation(name), Transpose) else value).astype(np.float32)
    return getattr(modeling_bigs_jax, architecture)(modeling_bigs_jax.BiGSConfig.from_dict(config), tree)


def _module(path: Path) -> Any:
    """A repo's code file as a module; nothing stays behind in the repo."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_repo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
