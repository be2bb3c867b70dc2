"""Static programs: neutral ops traced with unknown sizes, saved, loaded by the predictor, and trained when traced.

That a traced function agrees with float64, gradients included, is part of test_parity. Here a saved program must give
what the same kernel gives in eager mode, bit by bit.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

import fusionkit as fk
from fusionkit import parity, passes, registry
from fusionkit.dtypes import FLOATING
from fusionkit.frameworks.paddle import from_numpy, to_numpy
from tests.op_names import NEUTRAL_OPS

# Sizes of a batch, a prompt or a cache change from call to call; those of a model do not.
CHANGING = {"batch_size", "seq_len", "q_len", "kv_len", "num_tokens", "num_blocks", "block_size", "max_blocks", "..."}


class Calls(paddle.nn.Layer):
    """Calls an op with the tensors that come in and the values that stay."""

    def __init__(self, op, **values):
        super().__init__()
        self.op, self.values = op, values

    def forward(self, tensors):
        return self.op(**tensors, **self.values)


def specs(**shapes):
    """For `forward`: one argument, a dictionary of float32 tensors."""
    return [{name: InputSpec(shape, "float32", name) for name, shape in shapes.items()}]


def unknown_sizes(spec, name, array):
    declared = spec.input(name).shape.split()
    axes = ["..."] * (array.ndim - len(declared)) + declared
    if "..." in declared:
        axes = ["..."] * (array.ndim - len(declared) + 1) + declared[1:]
    return [-1 if CHANGING & set(axis.split("|")) else size for axis, size in zip(axes, array.shape, strict=True)]


class Saved:
    """An op's case as a saved program: the arrays it takes, and where it is."""

    def __init__(self, name, case, dtype, folder):
        self.op, self.path = getattr(fk, name), folder / name
        arguments = parity.arguments_of(self.op.spec, case, dtype)
        self.arrays = {key: value for key, value in arguments.items() if isinstance(value, np.ndarray)}
        self.values = {key: value for key, value in arguments.items() if key not in self.arrays}
        spec = {
            key: InputSpec(unknown_sizes(self.op.spec, key, array), array.dtype.name, key)
            for key, array in self.arrays.items()
        }
        passes.export(Calls(self.op, **self.values), self.path, [spec])

    def tensors(self):
        return {key: from_numpy(array, "cpu") for key, array in self.arrays.items()}

    def eager(self):
        """Outputs and written inputs of the same kernel, called directly."""
        with fk.use_backend("cpu"):
            copies = {key: array.copy() for key, array in self.arrays.items()}
            outputs = self.op(**copies, **self.values)
        listed = list(outputs) if isinstance(outputs, tuple) else [outputs]
        return [*listed, *(copies[key] for key in self.op.spec.mutates if key in copies)]


def cases():
    for name in NEUTRAL_OPS:
        spec = getattr(fk, name).spec
        for number, case in enumerate(case for case in spec.cases if not (case.llama or case.quantized)):
            for dtype in FLOATING if number % 8 == 0 else FLOATING[:1]:  # dtypes are proven by test_parity
                yield pytest.param(name, case, dtype, id=f"{name}-{dtype}-{case.name}")


def without_tiny(array):
    """Paddle's predictor makes the processor flush subnormals to zero, inside a kernel too."""
    if array.dtype.kind in "iub":
        return array
    result = array.copy()
    result[np.abs(array.astype(np.float32)) < 1e-30] = 0
    return result


def assert_same_bits(got, want):
    assert [(array.shape, array.dtype) for array in got] == [(array.shape, array.dtype) for array in want]
    for pair in zip(got, want, strict=True):
        g, w = (np.ascontiguousarray(without_tiny(array)).view(np.uint8) for array in pair)
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("name, case, dtype", list(cases()))
def test_predictor_gives_the_kernels_bits(name, case, dtype, tmp_path, parity_of):
    saved = Saved(name, case, dtype, tmp_path)
    ops = set(re.findall(r'"#":"\d+\.(fusionkit_\w+)"', Path(f"{saved.path}.json").read_text()))
    assert len(ops) == 1 and ops <= {f"fusionkit_{name}{variant}" for variant in ("", "_", "_bias", "_int8_")}
    predictor = passes.create_predictor(saved.path)
    tensors = saved.tensors()
    outputs = predictor.run([tensors[key] for key in predictor.get_input_names()])
    written = (tensors[key] for key in saved.op.spec.mutates if key in tensors)
    got = [*map(to_numpy, outputs), *map(to_numpy, written)]
    assert_same_bits(got, saved.eager())
    parity_of("cpu", "predictor")


LOAD = """
import sys
from pathlib import Path
import numpy as np, paddle
from fusionkit import passes
folder = Path(sys.argv[1])
passes.load_neutral_ops()
for file in sorted(folder.glob("*.npz")):
    arrays = np.load(file)
    path = folder / file.stem
    inputs = {name: arrays[name] for name in arrays if name != "out"}
    predictor = passes.create_predictor(path)
    names = predictor.get_input_names()
    predicted = predictor.run([paddle.to_tensor(inputs[name]) for name in names])[0]
    loaded = paddle.jit.load(str(path))(*[paddle.to_tensor(inputs[name]) for name in names])
    loaded = loaded[0] if isinstance(loaded, (list, tuple)) else loaded
    same = [np.array_equal(result.numpy(), arrays["out"]) for result in (predicted, loaded)]
    print(file.stem, *same)
"""


def test_a_fresh_process_loads_every_op(tmp_path):
    for name in NEUTRAL_OPS:
        case = next(case for case in getattr(fk, name).spec.cases if not case.llama)
        saved = Saved(name, case, "float32", tmp_path)
        np.savez(tmp_path / name, **saved.arrays, out=saved.eager()[0])
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} True True" for name in sorted(NEUTRAL_OPS)]


class Block(paddle.nn.Layer):
    """The ops of a decoder layer and its loss, in one small language model."""

    def __init__(self):
        super().__init__()
        random = np.random.default_rng(1)

        def parameter(*shape):
            value = paddle.nn.initializer.Assign(random.normal(0, 0.3, shape).astype(np.float32))
            return self.create_parameter(shape, default_initializer=value)

        self.embedding, self.norm, self.second_norm = parameter(29, 24), parameter(24), parameter(24)
        self.qkv, self.out, self.head = parameter(24, 48), parameter(24, 24), parameter(24, 29)
        angles = np.outer(np.arange(16), [1.0, 0.3, 0.1])
        self.cos, self.sin = (paddle.to_tensor(f(angles).astype(np.float32)) for f in (np.cos, np.sin))

    def forward(self, ids, labels):
        residual = paddle.nn.functional.embedding(ids, self.embedding)
        x = fk.fusion_rms_norm(residual, self.norm)
        q, k, v = paddle.split(fk.fused_linear(x, self.qkv), [24, 12, 12], axis=-1)
        q, k, v = (tensor.reshape([0, 0, -1, 6]) for tensor in (q, k, v))
        q, k = fk.fusion_rope(q, k, self.cos, self.sin)
        x = fk.fused_linear(fk.flash_attention(q, k, v, causal=True).reshape([0, 0, -1]), self.out)
        x, residual = fk.fusion_add_rms_norm(x, residual, self.second_norm)
        loss_sum, num_tokens = fk.fused_linear_cross_entropy(fk.swiglu(x, residual), self.head, labels)
        return loss_sum / num_tokens.cast("float32")


def train(layer, model, steps=12):
    optimizer = paddle.optimizer.AdamW(learning_rate=1e-2, parameters=model.parameters())
    random = np.random.default_rng(2)
    losses = []
    for step in range(steps):
        start, length = random.integers(0, 29, (2, 1)), 4 + step  # another length each time
        ids = (start + np.arange(length + 1)) % 29
        loss = layer(paddle.to_tensor(ids[:, :-1]), paddle.to_tensor(ids[:, 1:]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    return losses


def test_a_traced_model_trains_as_the_eager_one():
    eager, traced = Block(), Block()
    spec = [InputSpec([-1, -1], "int64", "ids"), InputSpec([-1, -1], "int64", "labels")]
    with fk.use_backend("cpu"):
        static = paddle.jit.to_static(traced, input_spec=spec, full_graph=True)
        losses = train(static, traced)
        assert losses == pytest.approx(train(eager, eager), rel=1e-6)
    assert losses[-1] < losses[0]
    ops = {op.name() for op in static.forward.concrete_program.main_program.global_block().ops}
    called = {name for name in NEUTRAL_OPS if name in Block.forward.__code__.co_names}
    assert len(called) == 7 and {f"custom_op.fusionkit_{name}" for name in called} <= ops
    for name, parameter in traced.named_parameters():
        np.testing.assert_allclose(parameter.numpy(), dict(eager.named_parameters())[name].numpy(), atol=1e-6)


def test_sizes_are_checked_when_the_program_runs(tmp_path):
    passes.export(Calls(fk.fused_linear), tmp_path / "linear", specs(x=[-1, -1], weight=[-1, 5]))
    predictor = passes.create_predictor(tmp_path / "linear")
    with pytest.raises(Exception, match="fused_linear: weight must be"):
        predictor.run([paddle.ones([2, 3]), paddle.ones([4, 5])])


def test_export_takes_nothing_but_neutral_ops(tmp_path, monkeypatch):
    monkeypatch.setattr(passes.neutral, "PREFIX", "other_")
    with pytest.raises(fk.FusionkitError, match="must hold only neutral ops other_.*, got fusionkit_swiglu"):
        passes.export(Calls(fk.swiglu), tmp_path / "program", specs(gate=[-1, 8], up=[-1, 8]))
    assert not list(tmp_path.iterdir())


def test_export_needs_a_kernel_for_every_call(tmp_path):
    weight = fk.pack_weight(np.ones((8, 4), np.float32), dtype="float32")
    with pytest.raises(ValueError, match="fused_linear: weight must be a tensor while a program is traced"):
        passes.export(Calls(fk.fused_linear, weight=weight), tmp_path / "program", specs(x=[-1, 8]))


@contextmanager
def file_size_limit(num_bytes):
    """Writing past it fails as on a full disk, or on FAT beyond 4 GiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def sizes_of_program(folder, layer):
    passes.export(layer, folder / "program", specs(x=[-1, 48]))
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@pytest.mark.parametrize("file", ["program.json", "program.pdiparams"])
@pytest.mark.parametrize("missing", [1, 1000, "all"])
def test_a_program_that_the_disk_does_not_take_whole_is_an_error(tmp_path, file, missing):
    layer = Weighted(1 if file == "program.json" else 64)  # the other file is smaller, and fits
    size = sizes_of_program(tmp_path, layer)[file]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with file_size_limit(0 if missing == "all" else size - missing), pytest.raises(OSError, match=r"disk|large"):
        passes.export(layer, tmp_path / "program", specs(x=[-1, 48]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Weighted(paddle.nn.Layer):
    """Parameters of every number of dimensions that a model has, and a buffer."""

    def __init__(self, columns, dtype="float32"):
        super().__init__()
        self.weight = self.create_parameter([48, columns], dtype=dtype)
        self.norm = self.create_parameter([48], dtype=dtype)
        self.register_buffer("table", paddle.ones([3, 1, 300], dtype))

    def forward(self, tensors):
        x = fk.fusion_rms_norm(tensors["x"].cast(self.weight.dtype), self.norm)
        return fk.fused_linear(x, self.weight).cast("float32") + self.table.cast("float32").sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("columns", [1, 127, 128, 16384])
def test_the_size_of_the_parameters_is_known_before_they_are_written(tmp_path, columns, dtype):
    layer = Weighted(columns, dtype)
    want = passes.files.parameters_size([layer.weight, layer.norm, layer.table])
    assert sizes_of_program(tmp_path, layer)["program.pdiparams"] == want


def test_parameters_and_buffers_that_no_output_needs_are_not_written(tmp_path):
    """Paddle leaves them out, and a file that lacks them is no sign of a full disk."""
    layer = Weighted(64)
    layer.unused = layer.create_parameter([5])
    layer.register_buffer("unused_table", paddle.ones([7]))
    want = passes.files.parameters_size([layer.weight, layer.norm, layer.table])
    assert sizes_of_program(tmp_path, layer)["program.pdiparams"] == want


@pytest.mark.parametrize("file", ["program.json", "program.pdiparams"])
def test_a_damaged_byte_is_found_before_the_program_runs(tmp_path, file):
    passes.export(Weighted(64), tmp_path / "program", specs(x=[-1, 48]))
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file}: must be of checksum [0-9a-f]{{8}}, got .*Export it again"):
        passes.create_predictor(tmp_path / "program")


def test_the_checksum_is_that_of_the_pieces_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(passes.files, "PIECE", 7)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(23)))
    pieces = [zlib.crc32(bytes(range(start, min(start + 7, 23)))) for start in (0, 7, 14, 21)]
    assert passes.files.checksum(path) == f"{zlib.crc32(np.array(pieces, '<u4').tobytes()):08x}"


def test_a_program_without_parameters_leaves_none_of_an_older_one(tmp_path):
    passes.export(Weighted(64), tmp_path / "program", specs(x=[-1, 48]))
    passes.export(Calls(fk.swiglu), tmp_path / "program", specs(gate=[-1, 8], up=[-1, 8]))
    assert {path.name for path in tmp_path.iterdir()} == {"program.json", "program.sizes"}
    x = paddle.ones([2, 8])
    passes.create_predictor(tmp_path / "program").run([x, x])


def test_export_leaves_device_and_policy_as_they_were(tmp_path):
    device = paddle.get_device()
    with fk.use_backend("eager"):
        passes.export(Calls(fk.swiglu), tmp_path / "program", specs(gate=[-1, 8], up=[-1, 8]))
        x = paddle.ones([2, 8])
        assert fk.swiglu.explain(x, x).chosen == "eager"
    assert paddle.get_device() == device and paddle.is_grad_enabled()


def test_without_a_backend_that_offers_them_neutral_ops_are_an_error(monkeypatch):
    monkeypatch.setattr(registry, "loaded", lambda: iter(()))
    with pytest.raises(fk.PluginError, match=r"no backend offers the neutral ops\n(.*\n)*Run: fusionkit doctor"):
        passes.load_neutral_ops()
