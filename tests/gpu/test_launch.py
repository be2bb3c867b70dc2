"""launch itself, with stand-ins for kernel, tensors and driver: which thread records, which card is asked."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from fusionkit_backends.gpu import attention_choice
from fusionkit_backends.gpu.autograd.flash_attention import flash_attention
from fusionkit_backends.gpu.kernels import card, launch

from tests.gpu.launches import empty


def tensor(device):
    return SimpleNamespace(get_device=lambda: device)


class Kernel:
    def __init__(self):
        self.runs = []

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.runs.append(arguments)


@pytest.fixture
def cards(monkeypatch):
    """The cards that were made current, in order."""
    made = [0]
    active = SimpleNamespace(get_current_device=lambda: made[-1], set_current_device=made.append)
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=active))
    return made


def test_a_recording_keeps_no_launch_of_another_thread(cards):
    kernel = Kernel()
    with launch.recording() as made:
        thread = threading.Thread(target=launch.launch, args=(kernel, (1,), tensor(0)))
        thread.start()
        thread.join()
        assert len(kernel.runs) == 1 and not made
        launch.launch(kernel, (1,), tensor(0))
    assert len(kernel.runs) == 1 and len(made) == 1


def test_a_launch_runs_on_its_tensors_card(cards):
    kernel = Kernel()
    launch.launch(kernel, (1,), tensor(1), 7, None, tensor(1))
    assert len(kernel.runs) == 1 and cards == [0, 1, 0]


def test_tensors_of_two_cards_are_refused(cards):
    kernel = Kernel()
    with pytest.raises(ValueError, match="one card, got cards 0 and 1"):
        launch.launch(kernel, (1,), tensor(0), 7, None, tensor(1))
    assert not kernel.runs


def test_tensors_in_bundles_are_on_one_card(cards):
    kernel = Kernel()
    launch.launch(kernel, (1,), (tensor(1), 7), 7, ((tensor(1),), 3))
    assert len(kernel.runs) == 1 and cards == [0, 1, 0]
    with pytest.raises(ValueError, match="one card, got cards 1 and 0"):
        launch.launch(kernel, (1,), (tensor(1), 7), 7, ((tensor(0),), 3))
    assert len(kernel.runs) == 1


def test_a_recorded_call_is_not_counted(monkeypatch):
    counted = []
    monkeypatch.setattr(attention_choice, "OURS", SimpleNamespace(add=lambda: counted.append(1)))
    q = empty(1, 32, 2, 16, dtype="bfloat16", grad=False)
    with card.assumed(card.H100), launch.recording() as made:
        flash_attention(q, q, q)
    assert made and not counted
