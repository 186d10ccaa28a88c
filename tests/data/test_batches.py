import numpy as np
import pytest

from cure_jax.data import batch_indices


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_has_full_batches_without_repetition(epoch):
    batches = [batch_indices(3, 4 * epoch + i, num_examples=103, batch_size=25) for i in range(4)]
    assert all(batch.shape == (25,) and batch.dtype == np.int32 for batch in batches)
    drawn = np.concatenate(batches)
    assert len(set(drawn.tolist())) == 100
    assert drawn.min() >= 0
    assert drawn.max() < 103


def test_epochs_and_seeds_differ():
    first = [batch_indices(seed, step, 1000, 1000) for seed, step in [(0, 0), (0, 1), (1, 0)]]
    assert all(np.mean(a == b) < 0.05 for a, b in [(first[0], first[1]), (first[0], first[2]), (first[1], first[2])])


def test_every_example_is_left_out_sometimes_only():
    seen = [set(batch_indices(0, step, 5, 4).tolist()) for step in range(50)]
    assert {min(set(range(5)) - batch) for batch in seen} == set(range(5))


def test_pure_function_of_seed_and_step():
    forward = [batch_indices(1, step, 40, 8) for step in range(30)]
    backward = [batch_indices(1, step, 40, 8) for step in reversed(range(30))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_the_caller_may_write_into_a_batch():
    batch = batch_indices(0, 0, 10, 5)
    before = batch.copy()
    batch[:] = -1
    np.testing.assert_array_equal(batch_indices(0, 0, 10, 5), before)


def test_the_stream_never_changes():
    assert batch_indices(0, 0, 10, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert batch_indices(5, 3, 7, 3).tolist() == [1, 5, 4]


def test_numpy_integers_are_steps_too():
    np.testing.assert_array_equal(batch_indices(np.int64(2), np.int32(5), 9, 3), batch_indices(2, 5, 9, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 10, 5), "seed -1 and step 0"),
        ((0, -3, 10, 5), "seed 0 and step -3"),
        ((0, 0, 10, 11), "batch_size 11 for 10 examples"),
        ((0, 0, 10, 0), "batch_size 0 for 10 examples"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_indices(*arguments)
