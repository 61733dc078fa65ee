"""The plan against torch itself: DistributedSampler, BatchSampler, DataLoader and randperm are the oracle."""

from dataclasses import replace
from itertools import accumulate, cycle, islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from cpstream_client.contract.plan import BLOCK_ROWS, WINDOW_BLOCKS, Indices, Plan, block_order, epoch_order
from cpstream_client.contract.randperm import STEPS_AT_ONCE, randperm

SEEDS = st.integers(-(2**63), 2**63 - 2**32)
"""What torch's manual_seed takes, with room for an epoch."""


class Split(Dataset[int]):
    """The samples of a split as their own indices."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


def torch_randperm(n: int, seed: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def batches_of(plan: Plan, order: Indices | None = None) -> list[list[int]]:
    order = plan.order() if order is None else order
    batches = [plan.batch(order, step).tolist() for step in range(plan.num_steps)]
    assert [each.tolist() for each in plan.batches(order, range(plan.num_steps))] == batches
    return batches


def all_ranks(plan: Plan) -> list[list[list[int]]]:
    """Batches by rank and step."""
    order = plan.order()
    return [batches_of(replace(plan, rank=rank), order) for rank in range(plan.world_size)]


def sampler_of(plan: Plan) -> DistributedSampler[int]:
    """Torch's own sampler of the same rank and epoch, for a whole epoch."""
    sampler = DistributedSampler(
        Split(plan.n),
        num_replicas=plan.world_size,
        rank=plan.rank,
        shuffle=plan.shuffle == "uniform",
        seed=plan.seed,
        drop_last=plan.remainder == "drop",
    )
    sampler.set_epoch(plan.epoch)
    return sampler


@st.composite
def plans(draw: st.DrawFn, remainders: tuple[str, ...] = ("pad", "drop", "exact"), start: bool = False) -> Plan:
    """Plans over small splits, whose ragged ends are as frequent as in no real one."""
    n = draw(st.integers(0, 120))
    world_size = draw(st.integers(1, 9))
    return Plan(
        n=n,
        batch_size=draw(st.integers(1, 20)),
        shuffle=draw(st.sampled_from(("none", "uniform", "blocks"))),
        seed=draw(SEEDS),
        epoch=draw(st.integers(0, 2**31)),
        start=draw(st.integers(0, n)) if start else 0,
        rank=draw(st.integers(0, world_size - 1)),
        world_size=world_size,
        remainder=draw(st.sampled_from(remainders)),  # type: ignore[arg-type]
        drop_last=draw(st.booleans()),
    )


# The order


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32 - 1, 2**32, 2**32 + 1, 5_000_000_000, -(2**63), 2**63 - 1])
def test_randperm_is_torchs_for_every_small_n(seed: int) -> None:
    for n in range(301):
        assert randperm(n, seed).tolist() == torch_randperm(n, seed), n


@pytest.mark.parametrize("n", [1_000, STEPS_AT_ONCE, STEPS_AT_ONCE + 1, STEPS_AT_ONCE + 2, 65_537, 1_000_003])
def test_randperm_is_torchs_for_large_n(n: int) -> None:
    for seed in (7, -3, 2**40 + 11):
        assert randperm(n, seed).tolist() == torch_randperm(n, seed)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5_000), SEEDS, st.integers(1, 6_000))
def test_randperm_is_torchs(n: int, seed: int, steps_at_once: int) -> None:
    assert randperm(n, seed).tolist() == torch_randperm(n, seed)
    assert randperm(n, seed, steps_at_once).tolist() == torch_randperm(n, seed)


def test_an_epochs_order_is_that_of_seed_plus_epoch() -> None:
    for seed, epoch in ((0, 0), (3, 4), (-5, 2), (2**32 - 1, 1)):
        assert epoch_order(1000, "uniform", seed, epoch).tolist() == torch_randperm(1000, seed + epoch)
        assert epoch_order(1000, "blocks", seed, epoch).tolist() == block_order(1000, seed + epoch).tolist()
    assert epoch_order(5, "none", seed=1, epoch=1).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3 * BLOCK_ROWS * WINDOW_BLOCKS), SEEDS)
@example(BLOCK_ROWS * WINDOW_BLOCKS, 0)
@example(2 * BLOCK_ROWS * WINDOW_BLOCKS + 1, 0)
def test_block_order_is_a_permutation_and_pure(n: int, seed: int) -> None:
    order = block_order(n, seed)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, block_order(n, seed))


def test_block_order_reads_a_window_of_whole_blocks_at_a_time() -> None:
    window = BLOCK_ROWS * WINDOW_BLOCKS
    order = block_order(4 * window, seed=3)
    blocks = [set((order[low : low + window] // BLOCK_ROWS).tolist()) for low in range(0, len(order), window)]
    assert [len(some) for some in blocks] == [WINDOW_BLOCKS] * 4
    # Shuffled in both ways: windows are no runs of the split, and blocks no runs of a window.
    assert all(max(some) - min(some) > 2 * WINDOW_BLOCKS for some in blocks)
    assert np.count_nonzero(np.diff(order) == 1) < len(order) / 1000


def test_block_order_changes_with_the_seed() -> None:
    assert not np.array_equal(block_order(1000, 0), block_order(1000, 1))


# Whole epochs, against torch's samplers


@settings(max_examples=2000, deadline=None)
@given(plans(remainders=("pad", "drop")).filter(lambda plan: plan.shuffle != "blocks" and plan.n > 0))
def test_a_rank_gets_what_distributed_sampler_and_batch_sampler_give(plan: Plan) -> None:
    batches = list(BatchSampler(sampler_of(plan), plan.batch_size, plan.drop_last))
    assert batches_of(plan) == batches
    assert plan.num_steps == len(batches)
    assert plan.num_samples == len(list(sampler_of(plan)))


@settings(max_examples=150, deadline=None)
@given(plans(remainders=("pad", "drop")).filter(lambda plan: plan.shuffle != "blocks" and plan.n > 0))
def test_a_rank_gets_what_a_dataloader_gives(plan: Plan) -> None:
    loader = DataLoader(Split(plan.n), plan.batch_size, sampler=sampler_of(plan), drop_last=plan.drop_last)
    assert batches_of(plan) == [batch.tolist() for batch in loader]
    assert plan.num_steps == len(loader)


@settings(max_examples=600, deadline=None)
@given(plans(start=True))
def test_all_ranks_make_the_same_steps(plan: Plan) -> None:
    ranks = all_ranks(plan)
    assert {len(batches) for batches in ranks} == {plan.num_steps}
    sizes = [[len(batch) for batch in batches] for batches in ranks]
    for batches in sizes:
        assert batches[:-1] == [plan.batch_size] * (plan.num_steps - 1) if batches else True
        if plan.drop_last:
            assert set(batches) <= {plan.batch_size}
    # What all ranks get at one step differs by one sample at most, and only "exact" has empty batches.
    for step in zip(*sizes, strict=True):
        assert max(step) - min(step) <= (1 if plan.remainder == "exact" else 0)
        assert max(step) > 0


@settings(max_examples=600, deadline=None)
@given(plans(remainders=("exact",), start=True))
def test_exact_gives_each_sample_that_is_left_once(plan: Plan) -> None:
    plan = replace(plan, drop_last=False)
    given_out = sorted(index for batches in all_ranks(plan) for batch in batches for index in batch)
    assert given_out == sorted(plan.order()[plan.start :].tolist())


@settings(max_examples=500, deadline=None)
@given(plans(remainders=("pad",), start=True))
def test_pad_repeats_the_head_of_the_order_and_nothing_else(plan: Plan) -> None:
    plan = replace(plan, drop_last=False)
    order = plan.order().tolist()
    left = len(order) - plan.start
    padding = -left % plan.world_size
    # Interleaved again, the ranks' samples are the order from start on, and then its head.
    ranks = [[index for batch in batches for index in batch] for batches in all_ranks(plan)]
    given_out = [index for together in zip(*ranks, strict=True) for index in together]
    assert given_out == order[plan.start :] + (order * (1 + padding))[:padding]


# Resuming


@settings(max_examples=600, deadline=None)
@given(plans(start=True), st.integers(0, 20))
def test_going_on_at_start_after_continues_the_same_batches(plan: Plan, steps: int) -> None:
    steps = min(steps, plan.num_steps)
    rest = replace(plan, start=plan.start_after(steps))
    assert batches_of(rest) == batches_of(plan)[steps:]


@st.composite
def elastic_epochs(draw: st.DrawFn) -> list[tuple[Plan, int]]:
    """An epoch in segments, each under another world size and batch size, with the number of steps that it is run for."""
    plan = draw(plans())
    segments = []
    for _ in range(draw(st.integers(0, 4))):
        plan = replace(plan, rank=0, world_size=draw(st.integers(1, 9)), batch_size=draw(st.integers(1, 20)))
        # Stopped before its end, as the end would pad, drop, or be the end of the epoch.
        steps = draw(st.integers(0, max(0, plan.num_steps - 1)))
        segments.append((plan, steps))
        plan = replace(plan, start=plan.start_after(steps))
    last = replace(plan, rank=0, world_size=draw(st.integers(1, 9)), batch_size=draw(st.integers(1, 20)))
    return [*segments, (last, last.num_steps)]


@settings(max_examples=600, deadline=None)
@given(elastic_epochs())
@example([(Plan(1, world_size=3, drop_last=True), 1)])
def test_an_elastic_epoch_sees_each_sample_once(segments: list[tuple[Plan, int]]) -> None:
    seen: list[int] = []
    for plan, steps in segments:
        # Step by step over all ranks, as they were consumed.
        ranks = [[index for batch in batches[:steps] for index in batch] for batches in all_ranks(plan)]
        longest = max(len(rank) for rank in ranks)
        seen += [rank[i] for i in range(longest) for rank in ranks if i < len(rank)]
    last, _ = segments[-1]
    order = last.order().tolist()
    left = last.n - last.start
    if last.drop_last or last.remainder == "drop":
        # The end may be missing, by less than a batch a rank; never a sample in the middle.
        assert seen == list(islice(cycle(order), len(seen)))  # a padding may be longer than the order
        assert len(order) - len(seen) < last.batch_size * last.world_size
    elif last.remainder == "exact":
        assert seen == order
    else:
        padding = -left % last.world_size
        assert seen == order + (order * (1 + padding))[:padding]


@settings(max_examples=500, deadline=None)
@given(plans(start=True))
def test_step_bounds_tile_the_rank_slice(plan: Plan) -> None:
    bounds = [plan.step_bounds(step) for step in range(plan.num_steps)]
    assert all(high == low for (_, high), (low, _) in pairwise(bounds))
    sizes = accumulate(high - low for low, high in bounds)
    assert list(sizes)[-1:] == [min(plan.num_samples, plan.num_steps * plan.batch_size)][: len(bounds)]


def test_an_order_is_not_written_to() -> None:
    plan = Plan(n=100, batch_size=7, world_size=3, rank=2)
    order = plan.order()
    order.flags.writeable = False
    batch = plan.batch(order, plan.num_steps - 1)
    batch += 1  # a new array: the service caches orders


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": -1}, "n is -1"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"epoch": -1}, "epoch is -1; it must be 0 or more"),
        ({"start": 11}, "start is 11; it must be from 0 to the split's 10 samples"),
        ({"start": -1}, "start is -1"),
        ({"world_size": 0}, "world_size is 0; it must be 1 or more"),
        ({"rank": 2, "world_size": 2}, r"rank is 2; it must be from 0 to 1 \(world_size - 1\)"),
        ({"rank": -1}, "rank is -1"),
        ({"shuffle": "yes"}, "shuffle is 'yes'; it must be one of none, uniform, blocks"),
        ({"remainder": "keep"}, "remainder is 'keep'; it must be one of pad, drop, exact"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_range(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**{"n": 10, **wrong})  # type: ignore[arg-type]
