"""In place of a training command: what a run writes, at once, and what happens to runs. The layout chooses.

python training_stand_in.py FLAGS.json, started by `paddle.distributed.launch`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

flags = json.loads(Path(sys.argv[1]).read_text())
rank, output = int(os.environ["PADDLE_TRAINER_ID"]), Path(flags["output_dir"])
stage = flags.get("sharding", "")

if flags["tensor_parallel_degree"] == 2:  # a refusal on one rank, for which the other waits
    if rank == 1:
        sys.exit("error: sft: --tensor_parallel_degree must be liked, got 2. Take another")
    time.sleep(600)
if flags["pipeline_parallel_degree"] == 2:  # as the kernel does where memory runs out
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
if stage == "stage3":  # does not end, nor does a process that left its session
    if rank == 0:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path(os.environ["SLEEPING"]).write_text(str(child.pid))
    time.sleep(600)
if rank == 0:
    assert flags["save_model"] is False and Path(flags["dataset_name_or_path"], "train.json").is_file()
    seconds = {"": 4.0, "stage1": 3.0, "stage2": 1.0}[stage]  # of all steps but the first
    output.mkdir()
    lines = [json.dumps({"step": step, "seconds": 9.0 if step == 1 else seconds}) for step in (1, 2, 3, 4)]
    (output / "log.jsonl").write_text("\n".join(lines) + "\n")
    (output / "report.json").write_text(json.dumps({"memory": {"measured": [3e8, 5e8]}}))
