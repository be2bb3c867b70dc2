"""--report_to tensorboard: every figure of the log, in records that TensorBoard reads."""

from __future__ import annotations

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from examples.llama2_13b.sft import sft
from examples.llama2_13b.train import tensorboard
from examples.llama2_13b.train.metrics import read_log


def records(path):
    """TFRecord: length uint64, its checksum, the record, its checksum."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return events


def events_of(folder):
    return [event for path in sorted(folder.iterdir()) for event in records(path)]


def scalars(folder):
    return {(value.tag, event.step): value.simple_value for event in events_of(folder) for value in event.summary.value}


def test_every_figure_of_the_log_is_a_scalar(sft_flags, no_measuring, no_drawing, tmp_path):
    assert sft(sft_flags(max_steps=3, eval_steps=3, report_to="tensorboard")) == 0
    found = scalars(tmp_path / "run" / "tensorboard")
    tags = {"eval_loss": "eval/loss"}
    wanted = {
        (tags.get(name, f"train/{name}"), line["step"]): value
        for line in read_log(tmp_path / "run" / "log.jsonl")
        for name, value in line.items()
        if name != "step"
    }
    assert found.keys() == wanted.keys() and ("eval/loss", 3) in found
    assert found == pytest.approx(wanted, rel=1e-6)  # float32


def test_the_last_line_is_written_with_the_test_loss(tmp_path):
    with tensorboard.TensorBoard(tmp_path, 0) as board:
        board.write({"step": 4, "loss": 1.0, "test_loss": 2.5})
    assert scalars(tmp_path) == {("train/loss", 4): 1.0, ("test/loss", 4): 2.5}


@pytest.mark.parametrize("step, dropped_from", [(0, []), (3, [4])])
def test_a_run_that_goes_on_drops_later_steps_of_the_run_before(tmp_path, step, dropped_from):
    """TensorBoard hides what comes before a record that says START, from its step on."""
    with tensorboard.TensorBoard(tmp_path, step) as board:
        board.write({"step": step + 1, "loss": 1.0})
    starts = [event for event in events_of(tmp_path) if event.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == dropped_from


def test_without_the_library_the_flag_is_refused(sft_flags, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--report_to must be none where tensorboardX is not installed"):
        sft_flags(report_to="tensorboard")


def test_another_reporter_is_refused(sft_flags):
    with pytest.raises(ValueError, match="--report_to must be tensorboard or none, got wandb"):
        sft_flags(report_to="wandb")


def test_a_folder_that_cannot_be_written_costs_no_step(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    with tensorboard.TensorBoard(tmp_path / "taken", 0) as board:
        board.write({"step": 1, "loss": 2.0})
    assert "Training is not affected" in capsys.readouterr().err
