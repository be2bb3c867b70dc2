"""`serve` on the emulated npu."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request

from examples.llama2_13b.export import ExportFlags, export
from tests.emulator.emulated import FUSIONKIT
from tests.llama.served import SOON


def test_its_steps_run_through_the_passes_and_answer_as_on_the_host(tiny_folder, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported"), "float16"))
    answers = []
    for device in ("npu:0", "cpu"):
        words = ("--model", str(tmp_path / "exported"), "--port", "0", "--device", device)
        emulate = (*FUSIONKIT, "emulate", "npu", "--memory", "4GiB", "--")
        command = (*emulate, sys.executable, "-m", "examples.llama2_13b.serve", *words)
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said = until_it_listens(server)
            answers.append([completed(said, prompt) for prompt in ("one", "two words")])
            assert ("pass llama_fuse_attention_layer_begin: 1 x first layer" in said) == (device == "npu:0")
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=SOON)
    assert answers[0] == answers[1]


def until_it_listens(server):
    said = ""
    for line in server.stdout:
        said += line
        if "http://" in line:
            return said
    raise AssertionError(said)


def completed(said, prompt):
    address = re.findall(r"http://[\d.:]+", said)[-1]
    body = json.dumps({"model": "exported", "prompt": prompt, "temperature": 0, "max_tokens": 5}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=SOON * 5) as answer:
        return json.load(answer)["choices"][0]["text"]
