"""Makes graphs: traces a model once for every length and batch, and writes it as ONNX or as a torch.export program."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from .forms.traceable import traceable
from .loaded import Exported

OPSET = 18
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LARGEST_BATCH = 1 << 16
SIZES = {2: ("batch", "tokens"), 3: ("batch", "choices", "tokens")}
# A protobuf holds less than 2 GiB; what is larger has its weights in a file beside it.
LARGEST_FILE = (2 << 30) - (64 << 20)
WEIGHTS_BESIDE = ".onnx_data"  # optimum and text-embeddings-inference look for model.onnx_data


def program_of(exported: Exported, example: Sequence[Tensor], longest: int) -> ExportedProgram:
    """The program of a model for every batch and every length from 1 to `longest`.

    Args:
        example: input tensors, ids first; their shape says nothing about what the program takes.
    """
    last = example[0].dim() - 1
    sizes = {0: Dim("batch", min=1, max=LARGEST_BATCH), last: Dim("tokens", min=1, max=longest)}
    if last == 2:
        sizes[1] = Dim("choices", min=1, max=LARGEST_BATCH)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(torch.no_grad())
        # Sizes of 1 are as any other, so that the program takes one text of one token, too.
        stack.enter_context(symbolic_shapes.patch(backed_size_oblivious=True))  # type: ignore[attr-defined]
        model = stack.enter_context(traceable(exported.model, longest))
        form = Exported(model, list(exported.modules_behind), exported.outputs).eval()
        program = torch.export.export(
            form,
            tuple(example),
            dynamic_shapes=tuple(dict(sizes) for _ in example),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return without_assertions(program)


def without_assertions(program: ExportedProgram) -> ExportedProgram:
    """The program without what it asserts of sizes.

    Where a size of 1 would allow a view without a copy, torch.export asserts that it is not 1, although the operations
    give the same. The comparison with the repo takes texts of one token and batches of one text.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def write_onnx(program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Writes a program as ONNX, with its weights in a file beside it if it is too large for one."""
    import onnx
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            verbose=False,
        )  # fmt: skip
        assert made is not None
        size = sum(value.const_value.nbytes for value in made.model.graph.initializers.values() if value.const_value)
        beside = path.stem + WEIGHTS_BESIDE if size > LARGEST_FILE else None
        onnx_ir.save(made.model, path, external_data=beside)
        # Without the shapes of values inside: nothing needs them, and the quantiser contradicts some.
        written = onnx.load(path, load_external_data=False)
        del written.graph.value_info[:]
        _name_sizes(written.graph)
        onnx.save(written, path)


def _name_sizes(graph: Any) -> None:
    """Gives the sizes of inputs and outputs the names that users see."""
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {size.dim_param: name for size, name in zip(sizes, SIZES[len(sizes)], strict=True)}
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps exporters and quantiser from printing what is of no use to a user: some log to the root logger."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def session(path: Path, threads: int = 0) -> Any:
    """A session of onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle threads of a session that spin would slow whatever is timed beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
