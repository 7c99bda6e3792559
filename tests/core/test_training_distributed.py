"""Several processes train the HGR that one process trains: shares of a batch, sums, checkpoints."""

from dataclasses import replace

import pytest
import torch

from safeguidance.training.distributed import SINGLE_PROCESS, all_gather, all_reduce_grads, local_indices, shard
from safeguidance.training.hgr import train_hgr
from tests.core.process_threads import run_together
from tests.core.toy_task import SETTINGS, SHAPE, ToyTask, toy_network, train_toy

# what has a state or draws random numbers is on; a batch that three processes cannot share evenly
ALL_ON = {"jitter": 0.2, "rollout_share": 0.5, "batch": 7, "text_batch": 5, "clean_share": 0.2}
BUCKETS = replace(SHAPE, edges=(0.0, 0.4))


def _train(count, steps, folder=None, task=ToyTask, stop=None, **changes):
    networks, config = (
        [toy_network(BUCKETS) for _ in range(count)],
        replace(SETTINGS, steps=steps, **{**ALL_ON, **changes}),
    )
    seen = []

    def work(group):
        def on_step(_, values):
            if group.rank == 0:
                seen.append(values)

        run = train_hgr(networks[group.rank], task(), config, folder, on_step, 5, progress_bar=False, group=group)
        for step in run:
            if step == stop:
                break
        return networks[group.rank]

    results, errors = run_together(count, work)
    return results, seen, errors


@torch.no_grad()
def _near(first, second):
    # what they say, not their weights: the bias of attention keys has no effect, and Adam moves it by rounding alone
    tokens = ToyTask().encode(["red knife", "spoon", "red red knife"]).tokens
    outputs = [[n.logits(tokens), n.change(tokens, 0)[0], n.change(tokens, 1)[0]] for n in (first, second)]
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_a_batch_that_is_shared_gives_the_losses_and_weights_of_one_process(count):
    alone, losses = train_toy(20, shape=BUCKETS, **ALL_ON)
    together, seen, errors = _train(count, 20)
    assert not errors
    for one, shared in zip(losses, seen, strict=True):
        assert shared == pytest.approx(one, rel=1e-3, abs=1e-5)
    for network in together:
        assert _near(network, alone)
        pairs = zip(network.parameters(), together[0].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


class Counts(ToyTask):
    rows_seen = 0

    def predict(self, x, sigma, cond):
        assert len(x) == len(sigma) == len(cond.tokens)
        type(self).rows_seen += len(x)
        return super().predict(x, sigma, cond)


def test_no_row_is_evaluated_twice():
    class First(Counts):
        pass

    class Second(Counts):
        pass

    train_toy(9, task=First(), shape=BUCKETS, **ALL_ON)
    _train(3, 9, task=Second)
    assert First.rows_seen == Second.rows_seen > 0


def test_any_number_of_processes_resumes_where_others_stopped(tmp_path):
    undisturbed = train_toy(20, shape=BUCKETS, **ALL_ON)[0]
    _, seen, errors = _train(2, 20, tmp_path, stop=12)
    assert not errors
    assert len(seen) == 12
    # the last regular checkpoint is that of step 10
    network, losses = train_toy(20, folder=tmp_path, shape=BUCKETS, stop=15, **ALL_ON)
    assert len(losses) == 5
    together, seen, errors = _train(3, 20, tmp_path)
    assert not errors
    assert len(seen) == 5
    assert _near(together[0], undisturbed)


class BreaksInOne(ToyTask):
    """Gives a loss that is not finite for one row of the whole batch, at the fourth training step."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def predict(self, x, sigma, cond):
        out = super().predict(x, sigma, cond)
        if cond.tokens.requires_grad:
            self.steps += 1
            if self.steps == 4 and len(x) == 4:
                out = out * torch.tensor([float("nan"), 1, 1, 1]).reshape(4, 1, 1, 1)
        return out


def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_the_step():
    # of seven rows, four belong to the first process and three to the second
    networks, _, errors = _train(2, 20, task=BreaksInOne)
    assert len(errors) == 2
    assert all("the loss is nan at step 3" in str(error) for error in errors)


def test_more_processes_than_rows_are_refused():
    _, _, errors = _train(3, 5, batch=2)
    assert all("3 processes cannot share 2 states and 5 texts" in str(e) for e in errors)
    assert errors


def test_rows_are_dealt_out_once_and_come_back_in_place():
    full = torch.arange(14.0).reshape(7, 2)

    def work(group):
        assert torch.equal(shard(full, group), full[local_indices(7, group)])
        return local_indices(7, group), all_gather(shard(full, group), 7, group)

    results, errors = run_together(3, work)
    assert not errors
    assert sorted(place for places, _ in results for place in places) == list(range(7))
    assert all(torch.equal(back, full) for _, back in results)
    assert shard(full, SINGLE_PROCESS) is full
    assert all_gather(full, 7, SINGLE_PROCESS) is full


def test_gradients_are_summed_and_a_missing_one_counts_as_zeros():
    def work(group):
        weights = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
        weights[0].grad = torch.full((2, 3), group.rank + 1.0)
        if group.rank == 1:
            weights[1].grad = torch.arange(4.0)
        return all_reduce_grads(weights, torch.tensor([float(group.rank), 1.0]), group), [w.grad for w in weights]

    results, errors = run_together(2, work)
    assert not errors
    for values, (first, second) in results:
        assert values.tolist() == [1.0, 2.0]
        assert first.eq(3).all()
        assert torch.equal(second, torch.arange(4.0))
