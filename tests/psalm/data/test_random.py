"""Draws depend on (seed, step, sample) and the stream's name, and on nothing else."""

import torch

from psalm.data.random import draw_key, generator


def test_key_is_the_same_on_every_machine():
    assert draw_key(0, 1, 2) == 3662037204992188296


def test_keys_fit_a_signed_tensor_and_differ():
    keys = {draw_key(seed, step, sample) for seed in range(3) for step in range(20) for sample in range(20)}
    assert len(keys) == 3 * 20 * 20
    assert all(0 <= key < 2**63 for key in keys)
    assert torch.tensor(sorted(keys)).tolist() == sorted(keys)


def test_numbers_do_not_run_together():
    assert draw_key(1, 11, 1) != draw_key(11, 1, 1) != draw_key(1, 1, 11)


def test_streams_of_a_key_repeat_and_are_independent():
    first = torch.rand(5, generator=generator(7, "points"))
    assert torch.equal(first, torch.rand(5, generator=generator(7, "points")))
    assert not torch.equal(first, torch.rand(5, generator=generator(7, "class_order")))
    assert not torch.equal(first, torch.rand(5, generator=generator(8, "points")))
