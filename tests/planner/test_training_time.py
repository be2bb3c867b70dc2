"""A step's time: what can be worked out by hand, and how it answers to the rates."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from fusionkit_planner import devices, exchange, passes, rates, training_time
from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout
from fusionkit_planner.rates import Level, Product, Rates
from fusionkit_planner.system import FUSIONKIT

LLAMA = Architecture("13B", 5120, 40, 40, 40, 128, 13824, 32000)
SMALL = Architecture("small", 1024, 8, 16, 4, 64, 2816, 32000)
CARD = Rates(
    "card", "bfloat16", 100e12, 1e12, 64e9, levels=(Level("node", 8, 100e9, 1e-6), Level("pod", 1024, 10e9, 5e-6))
)
LAYOUTS = [
    Layout(micro_batches=4),
    Layout(tensor=4, sequence_parallel=True, micro_batches=4),
    Layout(tensor=4, micro_batches=4, recompute="full"),
    Layout(pipeline=4, micro_batches=9, recompute="selective"),
    Layout(pipeline=4, virtual_stages=2, micro_batches=8),
    Layout(tensor=2, pipeline=2, data=2, micro_batches=3, micro_batch=2),
    Layout(tensor=2, sharding=16, stage=2, micro_batches=3),
    Layout(sharding=8, stage=3, micro_batches=2),
    Layout(context=4, tensor=2, sharding=2, micro_batches=2),
]


def named(layout):
    """What differs from one device."""
    given = asdict(layout).items()
    return "-".join(f"{name}:{value}" for name, value in given if value != getattr(Layout(), name))


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_the_parts_add_up_to_the_step(layout):
    time = training_time.step(SMALL, layout, 2048, CARD)
    parts = (time.compute, time.exposed_communication, time.bubble, time.optimizer, time.other)
    assert sum(parts) == pytest.approx(time.seconds)
    assert min(parts) >= -1e-12 and time.compute > 0


def test_a_product_without_memory_traffic_takes_its_flops():
    """On memory and links that cost nothing: 6 FLOPs a weight and token, and attention's causal half, 7 products."""
    free = replace(CARD, memory_bandwidth=1e30)
    time = training_time.step(LLAMA, Layout(micro_batches=3), 4096, free)
    attention = 4 * 4096 * LLAMA.queries / 2 * (1 + 2.5) * LLAMA.num_hidden_layers
    matrices = LLAMA.num_hidden_layers * LLAMA.matrices_of_layer + LLAMA.vocab_size * LLAMA.hidden_size
    assert time.seconds == pytest.approx(3 * 4096 * (6 * matrices + attention) / 100e12, rel=1e-9)
    again = training_time.step(LLAMA, Layout(micro_batches=3, recompute="full"), 4096, free)
    layers = LLAMA.num_hidden_layers * (2 * LLAMA.matrices_of_layer + 4 * 4096 * LLAMA.queries / 2)
    assert again.seconds - time.seconds == pytest.approx(3 * 4096 * layers / 100e12, rel=1e-9)
    scores = training_time.step(LLAMA, Layout(micro_batches=3, recompute="selective"), 4096, free)
    attention = LLAMA.num_hidden_layers * 4 * 4096 * LLAMA.queries / 2
    assert scores.seconds - time.seconds == pytest.approx(3 * 4096 * attention / 100e12, rel=1e-9)


def test_a_layer_sends_what_megatron_sends():
    """Two all-reduces forward and two backward, or their halves with sequence parallelism (arXiv:2205.05198, 4.2.2).
    The head has one more backward, and the embedding forward; their halves have a dual each."""
    alone, whole = replace(FUSIONKIT, hides_tensor=False), 2 * 2048 * SMALL.hidden_size
    summed = training_time.step(SMALL, Layout(tensor=4), 2048, CARD, alone).exposed_communication
    assert summed == pytest.approx((4 * SMALL.num_hidden_layers + 2) * CARD.all_reduce_seconds(4, whole))
    halves = training_time.step(SMALL, Layout(tensor=4, sequence_parallel=True), 2048, CARD, alone)
    times = 8 * SMALL.num_hidden_layers + 4
    assert halves.exposed_communication == pytest.approx(times * CARD.gather_seconds(4, whole))


def test_stages_with_a_tied_embedding_send_each_other_its_gradient():
    """Once a step, in float32, after everything else: from stage 0 to stage 3, two devices each."""
    layout, table = Layout(tensor=2, pipeline=4, micro_batches=4), SMALL.vocab_size * SMALL.hidden_size / 2
    for model, told in ((SMALL, 0.0), (replace(SMALL, is_tied=True), CARD.send_seconds(4 * table, 6))):
        found = exchange.gradients(model, layout, CARD, FUSIONKIT)
        assert (found.beside, found.after) == (0.0, told)
    tied = replace(SMALL, is_tied=True)
    assert exchange.gradients(tied, Layout(tensor=2), CARD, FUSIONKIT).seconds == 0
    assert exchange.gradients(tied, layout, CARD, replace(FUSIONKIT, adds_tied=False)).seconds == 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_travels_beside_passes_waits_while_tensors_collectives_hold_the_links(stage):
    """Of one level of links they move one after the other; where ranks of tensor have links of their own, at a time."""
    layout = Layout(tensor=2, sharding=4, stage=stage, sequence_parallel=True, micro_batches=2)
    node, pair = Level("node", 8, 2e8, 0.0), Level("pair", 2, 2e8, 0.0)
    one, two = (replace(CARD, levels=levels) for levels in ((node,), (pair, node)))
    sent = one.gather_seconds(2, 2 * 2048 * SMALL.hidden_size)
    # Of a layer 4 forward and 4 backward; of head and embedding one each.
    forward, backward = (4 * SMALL.num_hidden_layers + 2) * sent, (4 * SMALL.num_hidden_layers + 2) * sent
    held = {1: backward, 2: 2 * backward, 3: 2 * (forward + backward)}[stage]
    same, apart = (training_time.step(SMALL, layout, 2048, rates).exposed_communication for rates in (one, two))
    assert same - apart == pytest.approx(held)


def test_ranks_of_context_gather_keys_and_values_and_send_their_gradients_back():
    layout, whole = Layout(context=4, tensor=2), 2 * 2 * 2048 * SMALL.keys / 2
    assert passes.layer_forward(SMALL, layout, 2048, FUSIONKIT).gathered_bytes == whole
    assert passes.layer_backward(SMALL, layout, 2048, FUSIONKIT).gathered_bytes == 2 * whole


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_faster_links_and_memory_never_slow_a_step(layout):
    time = training_time.step(SMALL, layout, 2048, CARD).seconds
    links = tuple(replace(level, bandwidth=2 * level.bandwidth) for level in CARD.levels)
    assert training_time.step(SMALL, layout, 2048, replace(CARD, levels=links)).seconds <= time
    assert training_time.step(SMALL, layout, 2048, replace(CARD, memory_bandwidth=2e12)).seconds < time


def test_a_ring_between_nodes_shares_their_links_with_the_rings_beside_it():
    """Of 4 devices on 4 nodes each has the node's 8 links alone, or an eighth of them."""
    one, eight = CARD.gather_seconds(4, 1e9, stride=8), CARD.gather_seconds(32, 1e9, stride=1)
    assert one == pytest.approx(3 * (1e9 / 4 / 10e9 + 5e-6))
    assert eight == pytest.approx(31 * (1e9 / 32 / 80e9 + 5e-6))
    assert CARD.gather_seconds(8, 1e9) == pytest.approx(7 * (1e9 / 8 / 100e9 + 1e-6))
    assert CARD.all_reduce_seconds(8, 1e9) == 2 * CARD.gather_seconds(8, 1e9)


def sent_in_a_second(**axes):
    """On links that send all of a device's gradients in a second."""
    links = (Level("node", 64, 4 * exchange.weights(SMALL, Layout()), 0.0),)
    return exchange.gradients(SMALL, Layout(**axes), replace(CARD, levels=links), FUSIONKIT)


def test_sums_to_owners_over_data_and_new_values_send_what_one_all_reduce_sends():
    """However 8 copies are divided: 2 x 7/8 of the gradients. Only the sums to owners run beside passes."""
    for sharding in (1, 2, 4, 8):
        found = sent_in_a_second(data=8 // sharding, sharding=sharding, stage=1)
        assert found.seconds == pytest.approx(2 * 7 / 8)
        assert found.beside == pytest.approx((sharding - 1) / sharding if sharding > 1 else 2 * 7 / 8)
    every = sent_in_a_second(sharding=4, stage=2, micro_batches=5)
    assert (every.beside, every.after) == pytest.approx((5 * 3 / 4, 3 / 4))
    divided = sent_in_a_second(data=2, sharding=4, stage=3, micro_batches=5)
    assert (divided.beside, divided.after) == pytest.approx((3 * 5 * 3 / 4, 2 * 1 / 2 / 4))


@pytest.mark.parametrize("stage, passes", [(0, 1.0), (1, 1.0), (2, 3.0), (3, 6.0)])
def test_what_hides_an_exchange_is_what_runs_meanwhile(stage, passes):
    times = training_time.Durations((0.5, 0.5), (0.25, 0.75))
    assert exchange.hideaway(Layout(stage=stage, micro_batches=3), times) == passes


def on_a_host(seconds):
    """Links of 1 GB/s. Its cores take so many seconds for each byte that they send and receive."""
    return replace(CARD, levels=(Level("hosts", 8, 1e9, 0.0, processor_seconds=seconds),))


def test_what_a_core_moves_it_does_not_hide():
    """Beside a slow product a collective is hidden, but for what the core itself needs for its bytes; never more than
    the collective takes alone. Of the step's collectives 8 a layer and 2 of the head have a product."""
    layout, slow = Layout(tensor=4, sequence_parallel=True), {"peak_flops": 1e9, "attention_flops": 1e9}
    sent, pairs = 3 / 4 * 2 * 2048 * SMALL.hidden_size, 8 * SMALL.num_hidden_layers + 2
    for seconds, least in ((0.0, 0.0), (2e-10, 2e-10), (5e-9, 1e-9)):
        time = training_time.step(SMALL, layout, 2048, replace(on_a_host(seconds), **slow))
        alone = 2 * sent / 1e9  # of the embedding, forward and backward
        assert time.exposed_communication == pytest.approx(alone + pairs * sent * least)


def test_a_product_that_waits_for_its_collective_has_time_to_move_it():
    layout = Layout(tensor=4, sequence_parallel=True)
    found = [training_time.step(SMALL, layout, 2048, on_a_host(each)).seconds for each in (0.0, 1e-11, 1e-9)]
    assert found[0] == found[1] < found[2]  # CARD computes faster than its links send


@pytest.mark.parametrize("axes, times", [({"data": 4}, 2), ({"sharding": 4, "stage": 2, "micro_batches": 3}, 3)])
def test_copies_that_move_gradients_compute_no_faster_than_their_cores_move_them(axes, times):
    layout, moving = Layout(**axes), 3e-10
    sent = times * 3 / 4 * 4 * exchange.weights(SMALL, layout)
    found = exchange.gradients(SMALL, layout, on_a_host(moving), FUSIONKIT)
    assert found.moving == pytest.approx(moving * sent)
    passes = training_time.Durations((1e3,), (1e3,))
    assert exchange.added(found, [8], passes, layout) == pytest.approx(moving * sent)
    assert exchange.added(found, [8], training_time.Durations((0.0,), (0.0,)), layout) == found.beside


@pytest.mark.parametrize(
    "layers, forward, backward, waits",
    [
        ([4], (8.0,), (12.0,), 3 * (3 - 2) + 3 * (3 + 2 - 3) + 1),
        ([4], (12.0,), (20.0,), 1),  # all is hidden but what comes first
        ([1], (1.0,), (1.0,), 1),
        ([2, 2], (4.0, 8.0), (20.0, 20.0), (3 - 2) + 1 + 4 * 3),  # each chunk begins with matrices that are not there
    ],
)
def test_a_layer_hides_the_matrices_of_the_next_one_alone(layers, forward, backward, waits):
    """Matrices of a layer take 3 s, gradients 2 s, the embedding's table 1 s."""
    sent = exchange.Exchange(beside=0.0, after=0.0, matrices=3.0, gradients=2.0, first=1.0)
    assert exchange.waits_for_layers(sent, layers, training_time.Durations(forward, backward)) == waits


def test_a_long_backward_pass_does_not_hide_the_matrices_of_the_forward_pass():
    """A layer's matrices take 1.2 times its forward pass. Both passes together would hide all that moves."""
    layout, model = Layout(sharding=2, stage=3, micro_batches=3, recompute="full"), replace(SMALL, vocab_size=64)
    ahead, back = (each.seconds for each in training_time.pieces(model, layout, 2048, CARD, FUSIONKIT).layer)
    links = (Level("node", 2, 4 * model.parameters_of_layer / 2 / (1.2 * ahead), 0.0),)
    slow = replace(CARD, levels=links)
    found = exchange.gradients(model, layout, slow, FUSIONKIT)
    assert found.matrices + found.gradients < back and found.beside < 3 * model.num_hidden_layers * (ahead + back)
    exposed = training_time.step(model, layout, 2048, slow).exposed_communication
    assert exposed == pytest.approx(3 * ((model.num_hidden_layers - 1) * 0.2 * ahead + found.first), rel=0.1)


def test_data_is_outside_the_pipeline_as_in_the_example():
    """Two nodes of 8: stages are neighbours and send within a node; the sums over data go between nodes."""
    layout = Layout(tensor=4, pipeline=2, data=2, micro_batches=2)
    inside = training_time.pieces(SMALL, layout, 2048, CARD, FUSIONKIT).send
    assert inside == pytest.approx(CARD.send_seconds(2 * 2048 * SMALL.hidden_size, 4))
    summed = exchange.gradients(SMALL, layout, CARD, FUSIONKIT).beside
    assert summed == CARD.all_reduce_seconds(2, 4 * exchange.weights(SMALL, layout), stride=8)
    other = replace(FUSIONKIT, data_is_outermost=False)
    assert exchange.gradients(SMALL, layout, CARD, other).beside < summed
    assert training_time.pieces(SMALL, layout, 2048, CARD, other).send > inside


def test_measured_shapes_decide_and_none_beats_the_peak():
    slow, fast = Product(4096, 1024, 1024, 4e-4), Product(4096, 4096, 4096, 1.6e-3)
    measured = replace(CARD, products=(slow, fast))
    assert measured.product_seconds(4096, 1024, 1024) == pytest.approx(4e-4, rel=1e-3)
    between = 2 * 4096 * 2048 * 2048 / measured.product_seconds(4096, 2048, 2048)
    assert slow.flops < between < fast.flops
    assert replace(CARD, products=(Product(8, 8, 8, 1e-12),)).product_seconds(8, 8, 8) == 2 * 512 / 100e12


def test_unknown_links_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="fusionkit plan probe"):
        training_time.step(SMALL, Layout(tensor=4, micro_batches=2), 2048, replace(CARD, levels=()))
    with pytest.raises(ValueError, match="fusionkit plan probe"):
        rates.of(devices.find("A100"), "float8")
    with pytest.raises(ValueError, match="fusionkit plan probe"):
        rates.read(tmp_path / "none.json")


def test_a_file_of_the_probe_comes_back(tmp_path):
    import json

    measured = replace(CARD, products=(Product(8, 8, 8, 1e-6),), sources={"products": "measured here"})
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(measured.as_json()))
    found = rates.read(file)
    assert found.as_json() == measured.as_json() and found.products == measured.products


def test_groups_on_a_mesh_have_the_links_between_their_own_members_alone():
    """Eight devices with a link of 1 GB/s for each pair: of so many members each has one link fewer, wherever they
    stand. A message takes one link, and groups along two axes share none."""
    links = tuple(Level("node", size, (size - 1) * 1e9, 0.0, is_mesh=True) for size in (2, 4, 8))
    mesh, switch = replace(CARD, levels=links), replace(CARD, levels=(Level("node", 8, 7e9, 0.0),))
    for members, stride in ((2, 1), (2, 4), (4, 1), (4, 2), (8, 1)):
        assert mesh.gather_seconds(members, 8e9, stride) == pytest.approx(8 / members)  # to all peers at a time
        assert switch.gather_seconds(members, 8e9, stride) == pytest.approx((members - 1) * 8 / members / 7)
    assert [mesh.send_seconds(1e9, distance) for distance in (1, 3, 4, 7)] == pytest.approx([1.0] * 4)
    assert switch.share_links(2, 8) and not mesh.share_links(2, 8)


def test_stated_rates_say_that_nothing_was_measured():
    card = rates.of(devices.find("910b"))
    assert card.level(2).bandwidth * 7 == card.level(8).bandwidth  # a mesh: a link to each peer
    assert all(level.is_mesh for level in card.levels)
    assert all("nothing measured" in source for source in card.sources.values())
    assert rates.of(devices.find("A100")).level(2).bandwidth == 300e9
