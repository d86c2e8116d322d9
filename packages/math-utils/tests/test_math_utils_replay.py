"""Segments that are run again by themselves hand over the same bits as the whole model."""

import pytest
import torch
from math_utils.capture import frozen
from math_utils.curvature import ReplayedPasses, backward_pass
from math_utils.language_modeling import TokenBatch, summed_cross_entropy
from math_utils.linear_maps import find_linear_maps
from math_utils.replay import find_segments
from torch import nn

VOCAB, WIDTH = 11, 4
PLENTY = 1 << 30


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 6, bias=False)
        self.up = nn.Linear(WIDTH, 6)
        self.down = nn.Linear(6, WIDTH)

    def forward(self, x):
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


class Mixing(nn.Module):
    """Attention's signature: keyword arguments, a tuple out, positions that see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH, bias=False)

    def forward(self, hidden, *, weights, scale=1.0, cache=None):
        return self.out(torch.cumsum(self.value(hidden) * weights[0], dim=1)) * scale, None


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing, self.mlp = Mixing(), Mlp()

    def forward(self, x, weights):
        mixed, _ = self.mixing(hidden=x, weights=(weights,), scale=0.5)
        x = x + torch.tanh(mixed)
        return x + self.mlp(x)


class Decoder(nn.Module):
    def __init__(self, num_layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(num_layers))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.runs = 0

    def forward(self, batch: TokenBatch):
        self.runs += 1
        x = self.embedding(batch.input_ids)
        weights = torch.linspace(1, 2, x.shape[1])[None, :, None]
        for layer in self.layers:
            x = layer(x, weights)
        return self.head(x)


def objective(model, batch):
    predicts = batch.label_positions()
    logits = model(batch)[predicts]
    targets = batch.labels[:, 1:][predicts[:, :-1]]
    return summed_cross_entropy(logits, targets, predicts.nonzero()[:, 0], len(predicts))


def make_batch(side="right", labels=True):
    ids = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 1, 2]]
    ignored = [[-100] * len(one) for one in ids]
    return TokenBatch.collate(ids, ids if labels else ignored, range(3), padding_side=side)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder()


def tracked(model, pattern=("mlp", "mixing")):
    return find_linear_maps(model, lambda name: any(part in name for part in pattern))


def taken(run, maps):
    """{map: (inputs, output gradients)} that a pass hands over, each map once."""
    found = {}

    def consume(pair):
        assert pair.name not in found
        found[pair.name] = (pair.inputs.clone(), pair.output_gradients.clone(), pair.lengths)

    run(consume)
    assert set(found) == set(maps)
    return found


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for name, (inputs, gradients, lengths) in expected.items():
        assert torch.equal(found[name][0], inputs), name
        assert torch.equal(found[name][1], gradients), name
        assert found[name][2] == lengths


def plain(model, maps, batch, **options):
    with frozen(model):
        return taken(
            lambda consume: backward_pass(model, maps, batch, objective, consume, **options), maps
        )


def passed(passes, model, maps, batch, **options):
    with frozen(model):
        return taken(lambda consume: passes.run("a", maps, batch, consume, **options), maps)


def passed_twice(model, maps, batch, expected):
    """The passes, after two over one batch that both handed over what was expected."""
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    for _ in range(2):
        assert_same_bits(passed(passes, model, maps, batch), expected)
    return passes


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pattern", [("mlp",), ("mixing",), ("mlp", "mixing"), ("down",)])
def test_a_replayed_pass_hands_over_the_same_bits_without_running_the_model(model, pattern, side):
    maps, batch = tracked(model, pattern), make_batch(side)
    expected = plain(model, maps, batch)
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    assert_same_bits(passed(passes, model, maps, batch), expected)
    runs = model.runs
    for _ in range(2):
        assert_same_bits(passed(passes, model, maps, batch), expected)
    assert model.runs == runs
    assert any(gradients.any() for _, gradients, _ in expected.values())


def test_some_maps_are_replayed_from_a_pass_for_others(model):
    maps, batch = tracked(model), make_batch()
    expected = plain(model, maps, batch)
    upper = {name: one for name, one in maps.items() if name.startswith("layers.2.mlp.up")}
    rest = {name: one for name, one in maps.items() if name not in upper}
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    for group in (upper, rest):
        found = passed(passes, model, group, batch)
        assert_same_bits(found, {name: expected[name] for name in group})
    assert model.runs == 2


def test_a_batch_without_labels_has_gradients_of_zero_in_both(model):
    maps, batch = tracked(model), make_batch(labels=False)
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    first, second = (passed(passes, model, maps, batch) for _ in range(2))
    assert_same_bits(second, first)
    assert model.runs == 1
    assert not any(gradients.any() for _, gradients, _ in second.values())


def test_a_loss_scale_is_taken_out_of_replayed_gradients(model):
    maps, batch = tracked(model), make_batch()
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    first = passed(passes, model, maps, batch, loss_scale=1024.0)
    assert_same_bits(passed(passes, model, maps, batch, loss_scale=1024.0), first)
    assert model.runs == 1
    for name, (_, gradients, _) in plain(model, maps, batch).items():
        torch.testing.assert_close(first[name][1], gradients)


def test_segments_are_the_parts_of_layers_that_hold_the_maps(model):
    segments = {one.name: one.maps for one in find_segments(model, tracked(model))}
    assert list(segments)[:2] == ["layers.0.mixing", "layers.0.mlp"]
    assert segments["layers.2.mlp"] == tuple(f"layers.2.mlp.{n}" for n in ("gate", "up", "down"))
    lone = find_segments(model, tracked(model, ("layers.1.mlp.up", "head")))
    assert [one.name for one in lone] == ["layers.1.mlp.up", "head"]


def test_what_is_kept_is_the_input_and_output_gradient_of_every_segment(model):
    maps, batch = tracked(model, ("mlp",)), make_batch()
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    passed(passes, model, maps, batch)
    positions = batch.input_ids.numel()
    assert passes.num_bytes == len(model.layers) * 2 * positions * WIDTH * 4
    assert passes.num_batches == 1


def test_nothing_is_kept_beyond_the_room_there_is(model):
    maps, batch = tracked(model, ("mlp",)), make_batch()
    with frozen(model):
        everything = ReplayedPasses(model, maps, objective, PLENTY)
        everything.run("a", maps, batch, lambda pair: None)
        size = everything.num_bytes
        for room, expected in [(0, 0), (size - 1, 0), (size, 1), (2 * size - 1, 1), (2 * size, 2)]:
            passes = ReplayedPasses(model, maps, objective, room)
            for key in ("a", "b"):
                passes.run(key, maps, batch, lambda pair: None)
            assert passes.num_batches == expected
            assert passes.num_bytes == expected * size <= room


def test_after_forgetting_the_model_runs_again(model):
    maps, batch = tracked(model), make_batch()
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    first = passed(passes, model, maps, batch)
    passes.forget()
    assert passes.num_bytes == 0
    assert_same_bits(passed(passes, model, maps, batch), first)
    assert model.runs == 2
    assert passes.num_batches == 0


class Twice(Layer):
    def forward(self, x, weights):
        return super().forward(x, weights) + self.mlp(x)


class Around(Layer):
    """Calls the maps of its MLP, but not the MLP."""

    def forward(self, x, weights):
        return x + self.mlp.down(torch.sigmoid(self.mlp.gate(x)) * self.mlp.up(x))


class AlsoOutside(Layer):
    """Runs one map of the MLP a second time, by itself."""

    def forward(self, x, weights):
        return super().forward(x, weights) + self.mlp.up(x).sum(dim=-1, keepdim=True)


class ChangesInput(Layer):
    """Adds to the MLP's input in place, once the MLP is done."""

    def forward(self, x, weights):
        inner = x.clone()
        result = x + self.mlp(inner.detach())
        inner.add_(1.0)
        return result


class Counter:
    value = 0


class TakesAnObject(Layer):
    """Hands its part an object whose state may differ the next time."""

    def forward(self, x, weights):
        mixed, _ = self.mixing(hidden=x, weights=(weights,), cache=Counter())
        return x + mixed


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (Twice, ("mlp",)),
        (Around, ("mlp",)),
        (AlsoOutside, ("mlp",)),
        (ChangesInput, ("mlp",)),
        (TakesAnObject, ("mixing",)),
    ],
)
def test_what_cannot_be_replayed_runs_whole_again(model, kind, pattern):
    torch.manual_seed(1)
    model.layers[1] = kind()
    maps, batch = tracked(model, pattern), make_batch()
    expected = plain(model, maps, batch)
    runs = model.runs
    passes = passed_twice(model, maps, batch, expected)
    assert model.runs == runs + 2
    assert passes.num_batches == 0


class Parallel(Layer):
    """Two parts read one tensor."""

    def forward(self, x, weights):
        mixed, _ = self.mixing(hidden=x, weights=(weights,))
        return x + torch.tanh(mixed) + 2 * self.mlp(x)


def test_a_tensor_that_two_segments_read_is_counted_once(model):
    torch.manual_seed(1)
    model.layers[1] = Parallel()
    maps, batch = tracked(model, ("layers.1",)), make_batch()
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    passed(passes, model, maps, batch)
    num_rows, length = batch.input_ids.shape
    assert passes.num_bytes == 4 * (3 * num_rows * length * WIDTH + length)


class HandsOnInput(nn.Module):
    """Returns its input too, as attention returns what it was given of a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return {"input": x, "output": torch.sigmoid(self.gate(x)) * self.up(x)}


class ReadsBoth(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = HandsOnInput()

    def forward(self, x, weights):
        both = self.mlp(x)
        return both["input"] + both["output"]


def test_a_segment_that_hands_on_its_input_is_replayed(model):
    torch.manual_seed(1)
    model.layers[1] = ReadsBoth()
    maps, batch = tracked(model, ("mlp",)), make_batch()
    expected = plain(model, maps, batch)
    passes = passed_twice(model, maps, batch, expected)
    assert passes.num_batches == 1


def test_a_weight_that_two_segments_share_is_not_replayed(model):
    model.layers[2].mlp.up = nn.Linear(WIDTH, 6)
    model.layers[2].mlp.up.weight = model.layers[0].mlp.up.weight
    model.layers[2].mlp.up.bias = model.layers[0].mlp.up.bias
    maps, batch = tracked(model, ("mlp",)), make_batch()
    assert "layers.2.mlp.up" not in maps
    expected = plain(model, maps, batch)
    assert expected["layers.0.mlp.up"][2] == (10, 6, 8)  # twice the lengths
    passes = passed_twice(model, maps, batch, expected)
    assert passes.num_batches == 0


def test_a_last_pass_keeps_nothing_and_replays_what_was_kept(model):
    maps, batch = tracked(model), make_batch()
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    with frozen(model):
        passes.run("a", maps, batch, lambda pair: None)
        passes.keep_no_more()
        for key in ("a", "b", "b"):
            passes.run(key, maps, batch, lambda pair: None)
    assert (model.runs, passes.num_batches) == (3, 1)


def test_a_view_is_kept_without_what_it_is_a_view_of(model):
    class Sliced(Layer):
        def forward(self, x, weights):
            wide = torch.cat([x, x, x, x], dim=-1)
            return x + self.mlp(wide[..., :WIDTH])

    torch.manual_seed(1)
    model.layers[1] = Sliced()
    maps, batch = tracked(model, ("layers.1.mlp",)), make_batch()
    expected = plain(model, maps, batch)
    passes = passed_twice(model, maps, batch, expected)
    assert passes.num_bytes == 2 * batch.input_ids.numel() * WIDTH * 4


def test_an_error_of_the_consumer_keeps_nothing_and_leaves_no_hook(model):
    maps, batch = tracked(model), make_batch()
    passes = ReplayedPasses(model, maps, objective, PLENTY)

    def fail(pair):
        raise RuntimeError("stop here")

    with frozen(model), pytest.raises(RuntimeError, match="stop here"):
        passes.run("a", maps, batch, fail)
    assert passes.num_batches == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert_same_bits(passed(passes, model, maps, batch), plain(model, maps, batch))


def test_a_non_finite_gradient_is_named_in_a_replay_too(model):
    maps, batch = tracked(model, ("mlp",)), make_batch()
    passes = ReplayedPasses(model, maps, objective, PLENTY)
    passed(passes, model, maps, batch)
    with torch.no_grad():
        model.layers[2].mlp.down.weight.fill_(float("nan"))
    with frozen(model), pytest.raises(ValueError, match=r"layers\.2\.mlp\.(gate|up)"):
        passes.run("a", maps, batch, lambda pair: None)
