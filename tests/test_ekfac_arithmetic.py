"""The arithmetic that the benchmarks count, against what torch's own counter sees."""

import sys
from pathlib import Path

import pytest
import torch
from if_query.models import LanguageModelLoss, select_maps
from math_utils.capture import frozen
from math_utils.curvature import (
    CovarianceSums,
    Damping,
    EigenvalueSums,
    ReplayedPasses,
    assemble,
    backward_pass,
    bases_to_keep,
    collect_queries,
    decompose,
    score_batch,
)
from math_utils.language_modeling import TokenBatch
from math_utils.linalg import gram_blocks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Olmo2Config

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from utils.ekfac_arithmetic import (
    GatedDecoder,
    Workload,
    backward_to_maps,
    covariance_products,
    eigendecompositions,
    example_products,
    forward,
    plain_pass,
    replay,
    rotations,
    score_products,
    stage_arithmetic,
)

SHAPES = GatedDecoder(num_layers=3, width=8, mlp_width=20, vocabulary=31)
LENGTH = 7
TRAIN, QUERIES = 5, 2
# torch counts all pairs of attention where it computes them all, as the eager implementation does.
DATA = Workload.of([LENGTH] * TRAIN, causal=False)
ASKED = Workload.of([LENGTH] * QUERIES, causal=False)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            Olmo2Config(
                vocab_size=SHAPES.vocabulary,
                hidden_size=SHAPES.width,
                intermediate_size=SHAPES.mlp_width,
                num_hidden_layers=SHAPES.num_layers,
                num_attention_heads=2,
                eos_token_id=1,
                attn_implementation="eager",
            ),
            dtype=torch.float32,
        ).eval()


def batch_of(count):
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, SHAPES.vocabulary, (count, LENGTH), generator=generator).tolist()
    return TokenBatch.collate(ids, ids, range(count))


def in_place_product(total, left, right, **_):
    return 2 * left[0] * left[1] * right[1]


def counted(run):
    # torch's counter knows addmm, but not that it can be done in place.
    known = {torch.ops.aten.addmm_: in_place_product}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        run()
    return counter.get_total_flops()


def fitted(model):
    """(maps, batch, bases, factors)."""
    maps, batch, loss = select_maps(model).maps, batch_of(TRAIN), LanguageModelLoss("sampled")
    covariances = CovarianceSums(maps)
    backward_pass(model, maps, batch, loss, covariances.add)
    bases = dict(decompose(covariances.finish().items()))
    squares = EigenvalueSums(maps, bases)
    backward_pass(model, maps, batch, loss, squares.add)
    return maps, batch, bases, assemble("ekfac", bases, squares.finish(TRAIN))


def test_forward_and_the_backward_pass_to_the_lowest_map_are_those_of_torch(model):
    maps, batch = select_maps(model).maps, batch_of(TRAIN)
    with frozen(model):
        run = counted(
            lambda: backward_pass(model, maps, batch, LanguageModelLoss(), lambda pair: None)
        )
        alone = counted(lambda: LanguageModelLoss()(model, batch))
    assert alone == forward(SHAPES, DATA)
    assert run == forward(SHAPES, DATA) + backward_to_maps(SHAPES, DATA)


def test_a_plain_pass_is_that_of_torch(model):
    batch = batch_of(TRAIN)
    run = counted(lambda: LanguageModelLoss()(model, batch).sum().backward())
    model.zero_grad(set_to_none=True)
    assert run == plain_pass(SHAPES, DATA)


def test_covariances_are_the_upper_triangles_of_products_by_token(model):
    maps, batch, seen = select_maps(model).maps, batch_of(TRAIN), {}

    def keep(pair):
        seen[id(pair.inputs)] = pair.inputs
        seen[pair.name] = pair.output_gradients

    with frozen(model):
        backward_pass(model, maps, batch, LanguageModelLoss(), keep)
    assert len(seen) == SHAPES.num_layers * 5
    # Block columns one wide are exactly the entries on and above the diagonal.
    run = counted(lambda: [gram_blocks(rows, block=1) for rows in seen.values()])
    assert run == covariance_products(SHAPES, DATA)


def test_the_stage_of_eigenvalues_does_what_is_counted(model):
    with frozen(model):
        maps, batch, bases, _ = fitted(model)
        squares, loss = EigenvalueSums(maps, bases), LanguageModelLoss("sampled")
        run = counted(lambda: backward_pass(model, maps, batch, loss, squares.add))
    parts = stage_arithmetic(SHAPES, DATA, ASKED, replays=False)["corrected eigenvalues"]
    assert run == sum(parts.values())
    assert parts["rotations"] == rotations(SHAPES, DATA)
    assert parts["products per example"] == example_products(SHAPES, DATA)


def test_a_replayed_stage_does_what_is_counted_and_the_forward_product_of_down(model):
    with frozen(model):
        maps, batch, bases, _ = fitted(model)
        squares = EigenvalueSums(maps, bases)
        passes = ReplayedPasses(model, maps, LanguageModelLoss("sampled"), max_bytes=1 << 30)
        passes.run(0, maps, batch, lambda pair: None)
        run = counted(lambda: passes.run(0, maps, batch, squares.add))
    parts = stage_arithmetic(SHAPES, DATA, ASKED, replays=True)["corrected eigenvalues"]
    # Nobody needs what down gives, but its module runs.
    not_needed = 2 * SHAPES.num_layers * DATA.num_tokens * SHAPES.map_weights
    assert run == sum(parts.values()) + not_needed
    assert parts["MLPs again"] == replay(SHAPES, DATA)


# The MLP is 20 wide and the model 8: 35 positions of training stand between 3 · 8 and 3 · 20 rows.
@pytest.mark.parametrize("num_queries", [1, 3, 6])
def test_the_stage_of_scores_does_what_is_counted(model, num_queries):
    asked = Workload.of([LENGTH] * num_queries, causal=False)
    with frozen(model):
        maps, batch, _, factors = fitted(model)
        bases = bases_to_keep(factors, num_queries=num_queries, num_rows=TRAIN * LENGTH)
        loss, found = LanguageModelLoss(), {}

        def run():
            found["queries"], _ = collect_queries(
                model, maps, [batch_of(num_queries)], loss, factors, Damping(), bases=bases
            )
            score_batch(model, maps, batch, loss, found["queries"])

        taken = counted(run)
    parts = stage_arithmetic(SHAPES, DATA, asked, replays=True)["scores"]
    assert taken == sum(parts.values())
    assert parts["scores of pairs"] == score_products(SHAPES, TRAIN, num_queries)
    all_back = 6 * SHAPES.num_layers * num_queries * SHAPES.map_weights * 28
    num_kept = sum(one is not None for sides in bases.values() for one in sides)
    assert num_kept == {1: 0, 3: 9, 6: 18}[num_queries]
    assert (parts["preconditioning"] < all_back) == (num_queries > 1)


def test_eigendecompositions_count_every_distinct_covariance_once():
    square = GatedDecoder(num_layers=2, width=3, mlp_width=3, vocabulary=5)
    # Two of inputs and three of gradients in each layer.
    assert eigendecompositions(square) == 2 * 5 * 14 * 27 // 3


def test_causal_attention_sees_itself_and_what_is_before():
    data = Workload.of([1, 4])
    assert data.num_attended == 1 + (1 + 2 + 3 + 4)
    assert (data.num_examples, data.num_tokens, data.num_labels) == (2, 5, 3)
