"""Context > environment > file > the platform's order; threads and tasks apart; settings checked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from fusionkit_backends.cpu import targets

import fusionkit as fk

X, WEIGHT = np.ones((2, 8), np.float32), np.ones(8, np.float32)


def ran():
    return {backend: count for (_, backend, _), count in fk.ledger().items()}


def in_process(code, **environment):
    """A new Python: settings are read once a process."""
    script = f"import fusionkit as fk, numpy as np\nX, W = np.ones((2, 8), 'f'), np.ones(8, 'f')\n{code}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FUSIONKIT_")}
    run = subprocess.run([sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else run.stderr.strip().splitlines()[-1]


CHOSEN = "print(fk.fusion_rms_norm.explain(X, W).chosen)"


def test_context_nests_and_speaks_for_single_ops():
    with fk.use_backend("eager"), fk.use_backend({"swiglu": "cpu"}):
        assert fk.fusion_rms_norm.explain(X, WEIGHT).chosen == "eager"
        assert fk.swiglu.explain(X, X).chosen == "cpu"
    assert fk.fusion_rms_norm.explain(X, WEIGHT).chosen == "cpu"


def test_use_backend_decorates():
    @fk.use_backend("eager")
    def run(depth):
        fk.fusion_rms_norm(X, WEIGHT)
        if depth:
            run(depth - 1)

    run(2)
    assert ran() == {"eager": 3}


@pytest.mark.parametrize(
    "wish, message",
    [
        ("cpo", "use_backend: no backend is called 'cpo'; did you mean 'cpu'?"),
        ({"swiglo": "cpu"}, "use_backend: no op is called 'swiglo'; did you mean 'swiglu'?"),
    ],
)
def test_unknown_names_get_the_nearest(wish, message):
    with pytest.raises(fk.SettingError, match=message.replace("?", r"\?")):
        fk.use_backend(wish)


def test_threads_do_not_see_each_others_backend():
    barrier = threading.Barrier(2)

    def work(name):
        with fk.use_backend(name):
            barrier.wait()
            for _ in range(20):
                fk.fusion_rms_norm(X, WEIGHT)
                barrier.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("cpu", "eager")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ran() == {"cpu": 20, "eager": 20}


def test_asyncio_tasks_do_not_see_each_others_backend():
    async def work(name):
        with fk.use_backend(name):
            for _ in range(20):
                fk.fusion_rms_norm(X, WEIGHT)
                await asyncio.sleep(0)

    async def both():
        await asyncio.gather(work("cpu"), work("eager"))

    asyncio.run(both())
    assert ran() == {"cpu": 20, "eager": 20}


def test_counts_are_exact_under_threads():
    fk.fusion_rms_norm(X, WEIGHT)
    fk.ledger().reset()
    threads = [threading.Thread(target=lambda: [fk.fusion_rms_norm(X, WEIGHT) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ran() == {"cpu": 8000}


def test_environment_names_a_backend_for_each_op():
    both = "print(fk.fusion_rms_norm.explain(X, W).chosen, fk.swiglu.explain(X, X).chosen)"
    assert in_process(both, FUSIONKIT_BACKEND="swiglu=cpu;*=eager") == "eager cpu"


def test_context_wins_over_environment_and_environment_over_file(tmp_path):
    file = tmp_path / "fusionkit.toml"
    file.write_text('backend = "eager"\n[cpu]\nisa = "portable"\n')
    assert in_process(CHOSEN, FUSIONKIT_CONFIG=str(file)) == "eager"
    assert in_process(CHOSEN, FUSIONKIT_CONFIG=str(file), FUSIONKIT_BACKEND="cpu") == "cpu"
    in_context = f"with fk.use_backend('eager'): {CHOSEN}"
    assert in_process(in_context, FUSIONKIT_CONFIG=str(file), FUSIONKIT_BACKEND="cpu") == "eager"


def test_a_file_can_name_a_list_for_one_op(tmp_path):
    file = tmp_path / "fusionkit.toml"
    file.write_text('strict = true\n[backend]\nfusion_rms_norm = ["eager", "cpu"]\n')
    assert in_process(CHOSEN, FUSIONKIT_CONFIG=str(file)) == "eager"


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"FUSIONKIT_BAKEND": "cpu"}, "FUSIONKIT_BAKEND is not a setting; did you mean 'FUSIONKIT_BACKEND'?"),
        ({"FUSIONKIT_STRICT": "yes"}, "FUSIONKIT_STRICT must be 0 or 1, got 'yes'"),
        ({"FUSIONKIT_MC2": "off"}, "FUSIONKIT_MC2 must be 0 or 1, got 'off'"),
        ({"FUSIONKIT_BACKEND": "gpo"}, "no backend is called 'gpo'"),
        ({"FUSIONKIT_BACKEND": "="}, "FUSIONKIT_BACKEND must be NAME, NAME,NAME or OP=NAME;*=NAME, got '='"),
        ({"FUSIONKIT_CPU_ISA": "avx1024"}, f"FUSIONKIT_CPU_ISA must be {' or '.join(targets.NAMES)}, got 'avx1024'"),
        ({"FUSIONKIT_CPU_ISO": "avx2"}, "FUSIONKIT_CPU_ISO is not a setting; did you mean 'FUSIONKIT_CPU_ISA'?"),
        ({"FUSIONKIT_CONFIG": "/nowhere.toml"}, "FUSIONKIT_CONFIG must name a TOML file, got '/nowhere.toml'"),
    ],
)
def test_unknown_settings_are_errors_at_the_first_dispatch(environment, message):
    assert message in in_process("fk.fusion_rms_norm(X, W)", **environment)


@pytest.mark.parametrize("line, name", [("strikt = true", "STRIKT"), ('[cpu]\niso = "avx2"', "CPU_ISO")])
def test_unknown_settings_of_a_file_are_errors_that_name_it(tmp_path, line, name):
    (file := tmp_path / "fusionkit.toml").write_text(line)
    said = in_process("fk.fusion_rms_norm(X, W)", FUSIONKIT_CONFIG=str(file))
    assert f"{file}: FUSIONKIT_{name} is not a setting; did you mean 'FUSIONKIT_" in said


def test_mc2_is_on_unless_environment_or_file_say_otherwise(tmp_path):
    shown = "from fusionkit import settings\nprint(settings.current().mc2)"
    file = tmp_path / "fusionkit.toml"
    file.write_text("mc2 = false\n")
    assert in_process(shown) == "True"
    assert in_process(shown, FUSIONKIT_MC2="0") == in_process(shown, FUSIONKIT_CONFIG=str(file)) == "False"
    assert in_process(shown, FUSIONKIT_CONFIG=str(file), FUSIONKIT_MC2="1") == "True"


def test_a_file_cannot_set_a_rehearsal_which_devices_read_from_the_environment(tmp_path):
    (file := tmp_path / "fusionkit.toml").write_text("rehearsal = true\n")
    said = in_process("fk.fusion_rms_norm(X, W)", FUSIONKIT_CONFIG=str(file))
    assert f"{file}: FUSIONKIT_REHEARSAL must be set in the environment; devices read no file" in said
    assert in_process("print(fk.is_rehearsal())", FUSIONKIT_REHEARSAL="1") == "True"


def test_unknown_settings_do_not_break_the_import():
    assert in_process("print('imported')", FUSIONKIT_BAKEND="cpu") == "imported"


def test_strict_forbids_a_fallback_in_the_default_order():
    switched_off = (
        "from fusionkit import registry\n"
        "import dataclasses\n"
        "cpu = next(p for p in registry.plugins() if p.name == 'cpu').backend\n"
        "object.__setattr__(cpu, 'available', lambda: 'switched off')\n"
        "fk.fusion_rms_norm(X, W)\n"
        "print('fell back')"
    )
    assert in_process(switched_off) == "fell back"
    refused = in_process(switched_off, FUSIONKIT_STRICT="1")
    assert refused == 'Use fusionkit.use_backend("eager") to run there.'


def test_a_package_declares_settings_of_its_own_which_a_file_cannot_set(tmp_path):
    """fusionkit_toy owns FUSIONKIT_TOY_*; it is imported only where such a name is set."""
    (tmp_path / "fusionkit_toy.py").write_text("SETTINGS = {'FUSIONKIT_TOY_SIZE': ('small', 'large')}")
    (file := tmp_path / "settings.toml").write_text('[toy]\nsize = "small"')
    shown = "import sys\nfrom fusionkit import settings\n"
    shown += "print(settings.value('FUSIONKIT_TOY_SIZE'), 'fusionkit_toy' in sys.modules)"
    toy = {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    assert in_process(shown, **toy) == "None False"
    assert in_process(shown, **toy, FUSIONKIT_TOY_SIZE="small") == "small True"
    assert "must be small or large, got 'tiny'" in in_process(shown, **toy, FUSIONKIT_TOY_SIZE="tiny")
    assert "did you mean 'FUSIONKIT_TOY_SIZE'?" in in_process(shown, **toy, FUSIONKIT_TOY_SIZES="small")
    assert "must be set in the environment" in in_process(shown, **toy, FUSIONKIT_CONFIG=str(file))


def test_a_device_that_is_software_is_called_emulated():
    shown = "print(fk.fusion_rms_norm.explain(X, W, device='npu:0'))"
    assert "device npu:0 (emulated)" in in_process(shown, FUSIONKIT_EMULATOR_DEVICE="npu")
    assert "device npu:0, " in in_process(shown, FUSIONKIT_EMULATOR_DEVICE="gcu")
