"""Backends from outside the repository: installed by pip, found, explained and used; broken ones reported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{distribution}"
version = "1.0"
[project.entry-points."fusionkit.backends"]
{name} = "{module}:backend"
[tool.setuptools]
py-modules = ["{module}"]
"""

TOY = """
import numpy as np
from fusionkit import Backend, Kernel

def fusion_rms_norm(x, weight, *, epsilon=1e-5):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight

backend = Backend(
    name="toy",
    device_types=("cpu",),
    proven_on="hardware",
    kernels={{"fusion_rms_norm": Kernel(functions={{"numpy": "{module}:fusion_rms_norm"}}, directions=("forward",))}},
)
"""

CALL = """
import fusionkit as fk, numpy as np
x, w = np.random.default_rng(0).standard_normal((3, 8)).astype("f"), np.ones(8, "f")
"""


def pip_install(target: Path, distribution: str, module: str, source: str, name: str = "toy") -> None:
    project = target.parent / f"{distribution}-source"
    project.mkdir()
    (project / f"{module}.py").write_text(source.format(module=module))
    (project / "pyproject.toml").write_text(PYPROJECT.format(distribution=distribution, module=module, name=name))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(project)], check=True, capture_output=True)


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site"


def run(site: Path, code: str) -> str:
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths}
    result = subprocess.run([sys.executable, "-c", CALL + code], env=environment, capture_output=True, text=True)
    return result.stdout + (result.stderr.strip().splitlines()[-1] if result.returncode else "")


def test_a_backend_installed_by_pip_is_found_explained_and_used(site):
    pip_install(site, "toy-package", "toy_module", TOY)
    code = """
with fk.use_backend("toy"):
    np.testing.assert_allclose(fk.fusion_rms_norm(x, w), fk.fusion_rms_norm.reference(x, w), rtol=1e-5)
print(*fk.ledger())
print(fk.fusion_rms_norm.explain(x, w, backend="toy", training=True))
print([str(s) for s in fk.backends() if s.name == "toy"])
"""
    out = run(site, code)
    assert "('fusion_rms_norm', 'toy', 'chosen')" in out
    assert "toy    no       forward only: gradients are wanted" in out
    assert "toy (toy-package 1.0): available" in out


def test_a_backend_installed_for_the_cpu_does_not_take_its_calls_in_silence(site):
    pip_install(site, "abacus-package", "abacus_module", TOY.replace('"toy"', '"abacus"'), name="abacus")
    code = """
fk.fusion_rms_norm(x, w)
print(*fk.ledger())
print(fk.fusion_rms_norm.explain(x, w))
"""
    out = run(site, code)
    assert "('fusion_rms_norm', 'cpu', 'chosen')" in out
    assert 'abacus  yes      tried after cpu, the device\'s own; fusionkit.use_backend("abacus") prefers it' in out


ATTENTION = """
import numpy as np
from fusionkit import Backend, Kernel

def flash_attention(q, k, v, *, causal=False):
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], scores.shape[-1] - scores.shape[-2]), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)

backend = Backend(
    name="toy",
    device_types=("cpu",),
    kernels={{"flash_attention": Kernel(functions={{"numpy": "{module}:flash_attention"}}, directions=("forward",))}},
)
"""


def test_a_kernel_with_fewer_parameters_registers_serves_what_it_can_and_refuses_the_rest_by_name(site):
    pip_install(site, "toy-package", "toy_module", ATTENTION)
    code = """
q, k, v = np.random.default_rng(1).standard_normal((3, 2, 5, 2, 16)).astype("f")
mask, bounds = np.ones((2, 1, 5, 5), bool), np.full((2, 1, 5, 2), 5, np.int32)
for given in ({}, {"causal": True}, {"causal": True, "attn_mask": None, "return_lse": False}):
    with fk.use_backend("toy"):
        got = fk.flash_attention(q, k, v, **given)
    np.testing.assert_allclose(got, fk.flash_attention.reference(q, k, v, **given), rtol=1e-4, atol=1e-5)
print(*fk.ledger().items())
for given in ({"attn_mask": mask}, {"startend_row_indices": bounds}, {"scale": 0.5}, {"return_lse": True}):
    try:
        with fk.use_backend("toy"):
            fk.flash_attention(q, k, v, **given)
    except fk.NoBackendError as error:
        print(*[line for line in str(error).splitlines() if line.startswith("  toy:")])
"""
    assert run(site, code).splitlines() == [
        "(('flash_attention', 'toy', 'chosen'), 3)",
        "  toy: attn_mask is not supported: it must be None, got [2, 1, 5, 5] bool",
        "  toy: startend_row_indices is not supported: it must be None, got [2, 1, 5, 2] int32",
        "  toy: scale is not supported: it must be None, got 0.5",
        "  toy: return_lse is not supported: it must be False, got True",
    ]


@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit"])
def test_a_broken_backend_is_reported_and_breaks_nothing(site, error):
    """Nor do its settings, which nobody can declare."""
    pip_install(site, "broken-package", "broken_module", f"raise {error}('no driver here')")
    code = """
import os
os.environ["FUSIONKIT_TOY_SIZE"] = "3"
fk.fusion_rms_norm(x, w)
print(next(status for status in fk.backends() if status.name == "toy"))
with fk.use_backend("toy"):
    fk.fusion_rms_norm(x, w)
"""
    out = run(site, code)
    assert f"toy (broken-package 1.0): not available: {error}: no driver here" in out
    assert out.endswith('Use fusionkit.use_backend("cpu") to run there.')


def test_two_packages_that_offer_one_name_are_an_error_that_names_both(site):
    pip_install(site, "toy-package", "toy_module", TOY)
    pip_install(site, "other-package", "other_module", TOY)
    assert "two distributions offer the backend 'toy': " in run(site, "fk.fusion_rms_norm(x, w)")
    listed = run(site, "print(*fk.backends())")
    assert "toy-package 1.0" in listed and "other-package 1.0" in listed


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("(x, weight, *, epsilon=1e-5)", "(x, weight, eps=1e-6)"),
            "must have the signature of fusion_rms_norm, (x, weight, *, epsilon=1e-05), got (x, weight, eps=1e-06)",
        ),
        (('name="toy"', 'name="toy", interface_version=99'), "written for backend interface 99, this fusionkit has 1"),
        (('name="toy"', 'name="other"'), "the entry point's name must be the backend's, got 'other'"),
        (('{{"fusion_rms_norm":', '{{"fusion_rms_nrom":'), "no op is called 'fusion_rms_nrom'"),
        ((":fusion_rms_norm", ":missing"), "toy_module:missing cannot be imported"),
        (("backend = Backend(", "backend = dict("), "the entry point must load a fusionkit.Backend, got dict"),
        (
            ('directions=("forward",)', 'vjp="{module}:fusion_rms_norm"'),
            "must take what its kernel of fusion_rms_norm takes, (grad_outputs, x, weight, epsilon), got (x, weight, *",
        ),
        (
            ('name="toy"', 'name="toy", settings={{"FUSIONKIT_STRICT": ()}}'),
            "its settings must be called FUSIONKIT_TOY_..., got 'FUSIONKIT_STRICT'",
        ),
        (("{module}:fusion_rms_norm", "os:getcwd"), "must have the signature of fusion_rms_norm"),
        (("{module}:fusion_rms_norm", "builtins:max"), "builtins:max has no signature: "),
    ],
    ids=["signature", "version", "name", "op", "function", "type", "vjp", "settings", "other", "compiled"],
)
def test_a_backend_that_breaks_the_interface_is_reported(site, change, message):
    pip_install(site, "toy-package", "toy_module", TOY.replace(*change))
    out = run(site, "fk.fusion_rms_norm(x, w)\nprint(*fk.backends())")
    assert "toy (toy-package 1.0): not available: " in out and message in out


OVERLOADED = """
import typing
@typing.overload
def fusion_rms_norm(x: int, weight, *, epsilon=1): ...
"""


def test_the_last_definition_of_a_function_is_its_own(site):
    pip_install(site, "toy-package", "toy_module", OVERLOADED + TOY)
    assert run(site, "with fk.use_backend('toy'): print(fk.fusion_rms_norm(x, w).shape)") == "(3, 8)\n"
