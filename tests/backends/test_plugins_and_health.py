"""How a device's plugin is found and its ops registered, and what doctor says with and without cards."""

from __future__ import annotations

import subprocess
import sys

import paddle
import pytest
from fusionkit_backends.gcu import health as gcu
from fusionkit_backends.gpu import health as gpu
from fusionkit_backends.npu import health as npu
from fusionkit_backends.xpu import health as xpu

import fusionkit as fk
from fusionkit import pci
from fusionkit.frameworks import custom_device, paddle_build

CARDS = {npu: ("0x19e5", "0xd802"), gcu: ("0x1e36", "0x0001"), gpu: ("0x10de", "0x20b2"), xpu: ("0x1d22", "0x3684")}


@pytest.fixture
def no_plugin(monkeypatch, tmp_path):
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", str(tmp_path))
    return tmp_path


def test_without_a_plugin_the_reason_names_the_folder_and_paddle_is_not_imported(no_plugin):
    code = (
        "import sys; from fusionkit.frameworks import custom_device as c; print(c.missing('npu'));"
        "print('paddle' in sys.modules)"
    )
    reason, imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert reason == f"Paddle has no device npu: {no_plugin} holds no plugin" and imported == "False"


def test_a_plugin_for_another_device_is_told_apart(no_plugin, monkeypatch):
    (no_plugin / "libother.so").touch()
    monkeypatch.setattr(paddle.device, "get_available_custom_device", lambda: ["other:0", "other:1"])
    reason = custom_device.missing_device("npu")
    assert reason == f"Paddle has no device npu: the plugins in {no_plugin} give other"


def test_ops_that_cannot_be_registered_make_the_backend_unavailable(no_plugin, monkeypatch):
    (no_plugin / "libbroken.so").write_text("no library")
    monkeypatch.setattr(paddle.device, "get_available_custom_device", lambda: ["npu:0"])
    monkeypatch.setattr(custom_device, "register_ops", custom_device.register_ops.__wrapped__)
    reason = custom_device.missing("npu")
    assert reason.startswith(f"the custom ops of {no_plugin}/libbroken.so cannot be registered: RuntimeError: ")
    assert "invalid ELF header" in reason or "file too short" in reason


def test_the_number_of_arguments_is_read_from_what_is_registered():
    fk.swiglu(paddle.ones([2, 8]), paddle.ones([2, 8]))  # registers the CPU backend's ops
    assert custom_device.argument_counts("fusionkit_flash_attention") == (5, 2)
    assert custom_device.missing_op("fusionkit_flash_attention", (5, 2), (7, 3)) is None
    assert custom_device.missing_op("fusionkit_flash_attention", (7, 3)) == (
        "fusionkit_flash_attention must take 7 inputs and 3 attributes, and the plugin's takes 5 and 2"
    )
    assert custom_device.missing_op("no_such_op", (1, 1)) == "the plugin has registered no op no_such_op"


def test_no_gradient_is_recorded_without_gradients():
    x = paddle.ones([2, 8])
    x.stop_gradient = False
    fk.swiglu(x, x)
    assert not custom_device.run("fusionkit_swiglu", (x, x))[0].stop_gradient
    with paddle.no_grad():
        assert custom_device.run("fusionkit_swiglu", (x, x))[0].stop_gradient


@pytest.mark.parametrize("health", CARDS, ids=lambda health: health.__name__)
def test_doctor_finds_nothing_to_mend_without_a_card_and_what_is_missing_with_one(health, monkeypatch, no_plugin):
    monkeypatch.setattr(pci, "DEVICES", no_plugin / "pci")
    (check,) = health.checks()
    assert check.passed and check.found.startswith("none, so nothing is to be mended")
    card = no_plugin / "pci" / "0000:01:00.0"
    card.mkdir(parents=True)
    for name, value in zip(("vendor", "device", "class"), (*CARDS[health], "0x030200"), strict=True):
        (card / name).write_text(value)
    failed = [check for check in health.checks() if not check.passed]
    assert failed and all(check.fix for check in failed)


def test_gcu_asks_for_the_vendors_environment(monkeypatch):
    monkeypatch.setenv("FLAGS_use_stride_kernel", "true")
    wrong = gcu._variable("FLAGS_use_stride_kernel")
    assert not wrong.passed and wrong.fix == "export FLAGS_use_stride_kernel=false"
    monkeypatch.setenv("FLAGS_use_stride_kernel", "False")
    assert gcu._variable("FLAGS_use_stride_kernel").passed


def test_versions_are_compared_as_numbers(tmp_path):
    file = tmp_path / "version.info"
    file.write_text("Version=24.1.0\n")
    assert npu._versioned("driver", file, r"Version=(\S+)", "23.0.3", "").passed
    file.write_text("Version=23.0.2\n")
    assert not npu._versioned("driver", file, r"Version=(\S+)", "23.0.3", "").passed
    file.write_text("version=8.0.RC1\n")
    assert not npu._versioned("CANN", file, r"version=(\S+)", "8.0.RC2", "").passed
    assert not npu._versioned("CANN", tmp_path / "none", r"version=(\S+)", "8.0.RC2", "").passed


def test_what_paddle_was_built_for_is_read_without_importing_it():
    assert paddle_build.built_for("cuda_version") is None and paddle_build.built_for("no_such_entry") is None
    assert paddle_build.built_for("full_version") == paddle.version.full_version


@pytest.mark.parametrize(
    "version, good",
    [
        ("8.0.RC1", False),
        ("7.0.0", False),
        ("8.0.RC2", True),
        ("8.0.RC2.beta1", True),
        ("8.0.0", True),
        ("8.1.RC1", True),
    ],
)
def test_fused_products_need_a_cann_that_does_not_end_in_a_bus_error(version, good, tmp_path, monkeypatch):
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert npu.outdated_cann() is None  # none installed: an emulated card
    folder = tmp_path / "aarch64-linux"
    folder.mkdir()
    (folder / "ascend_toolkit_install.info").write_text(f"package_name=Ascend-cann-toolkit\nversion={version}\n")
    reason = npu.outdated_cann()
    assert reason is None if good else reason.startswith(f"CANN {version} is too old: install CANN 8.0.RC2 or newer")


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_name_that_npu_users_know_stands_for_the_setting(value):
    code = "from fusionkit import settings; s = settings.current(); print(s.mc2, s.sources['FUSIONKIT_MC2'])"
    environment = {"FLAGS_NPU_MC2": value, "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout == f"{value == '1'} environment (FLAGS_NPU_MC2)\n", run.stderr
