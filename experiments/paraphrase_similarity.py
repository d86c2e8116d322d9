"""Does a sample's gradient find the training sample that it paraphrases?

Question: given the gradient of a rewritten sample, or of the model's own answer to a rewritten
question, is the most similar gradient among the originals that of the sample it came from?

Command:   uv run experiments/paraphrase_similarity.py --model M --computation-type dot-product
           uv run experiments/paraphrase_similarity.py analyze
Result:    JSON under results/paraphrase/SETTING/, query id → candidate id → value, and with
           `analyze` accuracies in analysis.json and a figure
Expected:  paraphrase_quickstart.py runs all of it on a tiny model; see paraphrases.md
Run time:  bench_paraphrase.py measures its parts
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from if_query.command_line import parse
from if_query.errors import InputError
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from utils.paraphrase_config import SimilarityConfig, one_line_errors


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OriginalsConfig(SimilarityConfig):
    """Compute and cache the gradients of this partition's originals, and compare nothing."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CombineConfig:
    """Merge the parts of results that partitions wrote; refuses what is missing or overlaps."""

    output_dir: Path = Path("results/paraphrase")
    """Folder of results."""
    setting: tuple[Literal["paraphrased", "model-generated"], ...] = (
        "paraphrased",
        "model-generated",
    )
    """Which of them."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AnalyzeConfig(CombineConfig):
    """Accuracies of all whole results, with BM25 beside them, and figures."""

    seed: int = 42
    """Seed of the halves that a selection is chosen on and reported on, and of intervals."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that the arguments ask for."""
    words = list(sys.argv[1:] if args is None else args)
    program = "paraphrase_similarity.py"
    with one_line_errors():
        if words[:1] == ["combine"]:
            combine(parse(CombineConfig, program=f"{program} combine", args=words[1:]))
        elif words[:1] == ["analyze"]:
            analyze(parse(AnalyzeConfig, program=f"{program} analyze", args=words[1:]))
        elif words[:1] == ["originals"]:
            config = parse(OriginalsConfig, program=f"{program} originals", args=words[1:])
            Run(config).originals_only()
        else:
            Run(parse(SimilarityConfig, program=program, args=words)).similarities()


class Run:
    """Data, model, candidates and caches of one call of the command."""

    def __init__(self, config: SimilarityConfig) -> None:
        config.check()
        self.config = config
        from attribution.decoder import num_positions
        from attribution.gradient_similarity import (
            ExampleGradients,
            data_fingerprint,
            model_fingerprint,
        )
        from attribution.paraphrases import (
            QUERY_COLUMNS,
            choose_samples,
            encode_turn,
            read_samples,
        )
        from if_query.models import load_model, load_tokenizer

        column = QUERY_COLUMNS[config.setting]
        samples = read_samples(config.dataset, required=("messages", column))
        self.samples = choose_samples(samples, config.sample_size, seed=config.seed)
        self.ids = [sample.id for sample in self.samples]
        self.partition = self._partition()
        tokenizer = load_tokenizer(config.model)
        model = load_model(config.model, dtype="float32", device=config.device)
        encoded = [
            [
                encode_turn(tokenizer, turn, sample.id, max_length=config.max_length)
                for sample, turn in zip(self.samples, turns, strict=True)
            ]
            for turns in (
                [sample.original for sample in self.samples],
                [sample.turns[column] for sample in self.samples],
            )
        ]
        self.originals, self.queries = encoded
        limit = num_positions(model)
        longest = max(len(one.input_ids) for side in encoded for one in side)
        if limit is not None and longest > limit:
            raise InputError(
                f"{config.model}: takes {limit} tokens, and a conversation has {longest}; "
                f"pass --max-length {limit}"
            )
        self.asked = [sample.turns[column].user for sample in self.samples]
        self.gradients = ExampleGradients(model)
        self.fingerprints = {
            "model_fingerprint": model_fingerprint(model),
            "data_fingerprint": data_fingerprint(self.originals),
        }
        self.query_fingerprint = data_fingerprint(self.queries)

    def _partition(self) -> list[int]:
        """Places of this partition's queries."""
        start, end = self.config.partition_start, self.config.partition_end
        if start is None or end is None:
            return list(range(len(self.ids)))
        places = [place for place, one in enumerate(self.ids) if start <= one < end]
        if not places:
            raise InputError(
                f"no query id lies in the partition [{start}, {end}); "
                f"ids go from {self.ids[0]} to {self.ids[-1]}"
            )
        return places

    def representations(self) -> list[Any]:
        """Whole gradients or projections, with their caches where these fit."""
        from attribution.gradient_similarity import (
            GradientProjection,
            GradientStore,
            Representation,
        )

        made = []
        for fraction in self.config.fractions():
            layout = self.gradients.layout
            projection = (
                None if fraction is None else GradientProjection(layout, fraction, self.config.seed)
            )
            compared = layout if projection is None else projection.layout
            gigabytes = len(self.originals) * compared.size * compared.dtype.itemsize / 1e9
            store = None
            if gigabytes <= self.config.cache_gb:
                folder = self.config.cache_dir or self.config.output_dir / "cache"
                arguments: dict[str, Any] = dict(self.fingerprints)
                if fraction is not None:
                    arguments |= {"projection_fraction": fraction, "seed": self.config.seed}
                name = "whole" if fraction is None else f"projected_{fraction}"
                store = GradientStore(folder / name, compared, arguments)
            else:
                print(
                    f"{gigabytes:.0f} GB of gradients of originals exceed --cache-gb "
                    f"{self.config.cache_gb:g}: each is computed once per block of queries"
                )
            made.append(Representation(projection, store))
        return made

    def originals_only(self) -> None:
        """Fill the cache with the originals of this partition."""
        from attribution.gradient_similarity import Work, store_originals

        representations = self.representations()
        if any(one.store is None for one in representations):
            print("nothing is cached, so there is nothing to prepare")
            return
        work = Work()
        chosen = [self.originals[place] for place in self.partition]
        store_originals(self.gradients, chosen, representations, work=work)
        print(f"{work.original_gradients} gradients of originals computed and cached")

    def similarities(self) -> None:
        """Compare the partition's queries with their candidates and write the results."""
        from attribution.baselines import bm25_scores
        from attribution.gradient_similarity import Work, gradient_similarities
        from attribution.gradient_similarity.result_files import (
            part_path,
            results_as_json,
            write_results,
        )
        from attribution.paraphrases import CandidateRule, choose_candidates

        config = self.config
        start, end = config.partition_start, config.partition_end
        paths = []
        for fraction in config.fractions():
            path = config.result_path(fraction)
            paths.append(path if start is None or end is None else part_path(path, start, end))
        arguments = [self.arguments(fraction) for fraction in config.fractions()]
        finished = [_is_finished(p, a, config) for p, a in zip(paths, arguments, strict=True)]
        if all(finished):
            print(f"already there: {', '.join(map(str, paths))}")
            return
        scores = bm25_scores(self.asked, [sample.original.user for sample in self.samples])
        rule = CandidateRule.parse(config.candidates, forced=config.force_original)
        candidates = choose_candidates(scores, range(len(self.ids)), rule)
        representations = self.representations()
        entries = sum(one.layout(self.gradients).size for one in representations)
        itemsize = self.gradients.layout.dtype.itemsize
        at_once = max(1, int(config.query_memory_gb * 1e9 / (entries * itemsize)))
        work = Work()
        found = gradient_similarities(
            self.gradients,
            [self.queries[place] for place in self.partition],
            self.originals,
            [candidates[place] for place in self.partition],
            representations,
            queries_at_once=at_once,
            work=work,
        )
        bm25 = {
            self.ids[place]: {
                self.ids[other]: float(scores[place, other]) for other in candidates[place]
            }
            for place in self.partition
        }
        for path, own, similarities in zip(paths, arguments, found, strict=True):
            content = results_as_json(similarities, config.computation_type, bm25)
            write_results(path, {"arguments": own, **content})
            print(f"wrote {path}")
        print(
            f"{work.query_gradients} gradients of queries, {work.original_gradients} of originals, "
            f"{work.projections} projections, {work.dot_products} inner products"
        )

    def arguments(self, fraction: float | None) -> dict[str, Any]:
        """What stands beside the results: all that they depend on."""
        config = self.config
        return {
            "model": config.model,
            "dataset": config.dataset,
            "setting": config.setting,
            "computation_type": config.computation_type,
            "projection_fraction": fraction,
            "candidates": config.candidates,
            "force_original": config.force_original,
            "sample_size": config.sample_size,
            "seed": config.seed,
            "max_length": config.max_length,
            "dtype": "float32",
            **self.fingerprints,
            "query_fingerprint": self.query_fingerprint,
            "sample_ids": self.ids,
            "partition_start": config.partition_start,
            "partition_end": config.partition_end,
        }


def _is_finished(path: Path, arguments: dict[str, Any], config: SimilarityConfig) -> bool:
    from attribution.gradient_similarity.result_files import read_results

    if config.overwrite or not path.is_file():
        return False
    before = read_results(path)["arguments"]
    others = [name for name in arguments if before.get(name) != arguments[name]]
    if others:
        raise InputError(
            f"{path}: holds results with another {', '.join(others)}; choose another --output-dir "
            "or pass --overwrite"
        )
    return True


def combine(config: CombineConfig) -> None:
    """Merge the parts that are there."""
    from attribution.gradient_similarity.result_files import (
        combine_parts,
        find_parts,
        write_results,
    )

    parts = [part for name in config.setting for part in find_parts(config.output_dir / name)]
    if not parts:
        raise InputError(f"{config.output_dir}: no parts of results to combine")
    for whole in dict.fromkeys(part.whole for part in parts):
        write_results(whole, combine_parts([part for part in parts if part.whole == whole]))
        print(f"wrote {whole}")


def analyze(config: AnalyzeConfig) -> None:
    """Accuracies of every whole file of results, BM25 beside them; a figure for inner products."""
    from attribution.gradient_similarity.result_files import find_parts
    from utils.paraphrase_report import analyze_file, draw, print_summary, write_analysis

    if config.seed < 0:
        raise InputError(f"--seed: expected at least 0, got {config.seed}")
    done = {}
    for setting in config.setting:
        folder = config.output_dir / setting
        parts = {part.path for part in find_parts(folder)}
        for path in sorted(folder.glob("*_*.json")):
            if path not in parts:
                done[path] = analyze_file(path, seed=config.seed)
    if not done:
        raise InputError(f"{config.output_dir}: no results to analyse; combine the parts first?")
    write_analysis(config.output_dir / "analysis.json", done)
    drawn = [path for path, one in done.items() if "by_tensor" in one]
    for path in drawn:
        draw(path.with_suffix(".png"), done[path])
    print_summary(done)
    print(f"wrote {config.output_dir / 'analysis.json'} and {len(drawn)} figures")


if __name__ == "__main__":
    main()
