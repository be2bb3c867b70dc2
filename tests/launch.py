"""`python -m paddle.distributed.launch` for tests of what the processes do: Paddle is imported once, then they fork.

python tests/launch.py [--devices 0,1 | --nproc_per_node 2] --log_dir LOGS SCRIPT ...

Importing takes 1.6 s of processor time, which eight processes would spend eight times. Each finds its devices after the
fork, as a process of its own does. Tests of signals, of processes that die and of the scripts start Paddle's launcher.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import NoReturn

# What `import paddle` calls last, in its order: the first finds the devices.
LATER = ("init_devices", "init_tensor_operants", "init_default_kernel_signatures")
LAUNCH = __file__
ROOT = Path(__file__).resolve().parents[1]
GRACE = 20  # seconds in which the others tell that a process has failed
PR_SET_PDEATHSIG = 1  # prctl(2)


class Core:
    """Finds Paddle's core. Until the fork it makes none of the calls above, and answers as if they had found the
    emulated devices: `paddle.device` takes its functions from them."""

    def __init__(self) -> None:
        kind = os.environ.get("FUSIONKIT_EMULATOR_DEVICE")
        self.stand_ins = dict.fromkeys(LATER, lambda: None)
        if kind is not None:
            self.stand_ins["get_all_custom_device_type"] = lambda: [kind]
            self.stand_ins["is_compiled_with_custom_device"] = lambda name: name == kind

    def find_spec(self, name, path, target=None):
        if name != "paddle.base.core":
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_and_replace(module):
            execute(module)
            self.module, self.own = module, {call: getattr(module, call) for call in self.stand_ins}
            vars(module).update(self.stand_ins)

        spec.loader.exec_module = execute_and_replace
        return spec

    def find_devices(self) -> None:
        """As the end of `import paddle`, which has settled on the CPU meanwhile."""
        from paddle.base import framework

        vars(self.module).update(self.own)
        for call in LATER:
            self.own[call]()
        framework._global_expected_place_ = None
        framework._set_expected_place(framework._current_expected_place_())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=lambda text: text.split(","))
    parser.add_argument("--nproc_per_node", type=int)
    parser.add_argument("--log_dir", type=Path, required=True)
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    given.log_dir.mkdir(parents=True, exist_ok=True)
    sys.argv, sys.path[:1] = [given.script, *given.arguments], [str(Path(given.script).parent), str(ROOT)]
    core, source = Core(), Path(given.script).read_bytes()
    sys.meta_path.insert(0, core)
    import_what_is_named(source)
    if (metrics := sys.modules.get("examples.llama2_13b.train.metrics")) is not None:
        metrics.measure_peak_flops = lambda dtype: 1e11  # half a second of each process, for MFU
    gc.freeze()  # else the collector writes to every object, and each process copies all memory
    launcher, processes = os.getpid(), []
    for rank, settings in enumerate(settings_of(given.devices, given.nproc_per_node)):
        processes.append(os.fork())
        if processes[-1] == 0:
            begin(launcher, given.log_dir / f"workerlog.{rank}", settings)
            core.find_devices()
            leave(run(given.script, source))
    end(processes)


def import_what_is_named(source: bytes) -> None:
    """Paddle, and the modules that a script imports at its top. The script itself then has the import's error."""
    importlib.import_module("paddle")
    for statement in ast.parse(source).body:
        names = [each.name for each in statement.names] if isinstance(statement, ast.Import) else []
        for name in [statement.module] if isinstance(statement, ast.ImportFrom) else names:
            importlib.import_module(name)


def settings_of(devices: list[str] | None, count: int | None) -> list[dict[str, str]]:
    """What Paddle's launcher tells each process; a custom device is the one that `fusionkit emulate` offers."""
    count = len(devices) if devices else count
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count + 1)]  # all open, so that they differ
    master, *endpoints = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    settings = []
    for rank, endpoint in enumerate(endpoints):
        places = {"PADDLE_TRAINER_ID": rank, "PADDLE_GLOBAL_RANK": rank, "PADDLE_LOCAL_RANK": rank}
        counts = {"PADDLE_TRAINERS_NUM": count, "PADDLE_GLOBAL_SIZE": count, "PADDLE_LOCAL_SIZE": count}
        names = {"PADDLE_MASTER": master, "PADDLE_CURRENT_ENDPOINT": endpoint, "PADDLE_NNODES": 1}
        names |= {"PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints), "PADDLE_RANK_IN_NODE": rank}
        if devices:
            kind = os.environ["FUSIONKIT_EMULATOR_DEVICE"]
            names |= {"PADDLE_DISTRI_BACKEND": "xccl", "PADDLE_XCCL_BACKEND": kind}
            names[f"FLAGS_selected_{kind}s"] = devices[rank]
        else:
            names["PADDLE_DISTRI_BACKEND"] = "gloo"
        settings.append({name: str(value) for name, value in (places | counts | names).items()})
    return settings


def begin(launcher: int, log: Path, settings: dict[str, str]) -> None:
    """Makes this process one of them; it does not outlive the launcher."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        sys.exit("the launcher has ended")
    os.environ |= settings
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def run(script: str, source: bytes) -> int:
    """As `python SCRIPT`; its exit status."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = script
    try:
        exec(compile(source, script, "exec"), vars(module))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """Ends a fork without destroying what its libraries hold: one time in 50 the process of rank 0 died of SIGSEGV
    there, after its work, which no process of Paddle's launcher did."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end(processes: list[int]) -> None:
    """Without what Paddle does when a process ends, which is for devices. One that fails ends the others."""
    running, status = set(processes), 0

    def terminate(*_):
        for each in running:
            os.kill(each, signal.SIGTERM)

    signal.signal(signal.SIGALRM, terminate)
    while running:
        ended, how = os.wait()
        running.remove(ended)
        if how != 0 and status == 0:
            status = 1
            signal.alarm(GRACE)
    os._exit(status)


if __name__ == "__main__":
    main()
