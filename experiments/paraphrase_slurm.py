"""Submit paraphrase_similarity.py as jobs, each for a partition of the queries.

Question: none of its own; it spreads paraphrase_similarity.py over a cluster.

Command:   uv run experiments/paraphrase_slurm.py --model M --num-partitions 10 --dry-run
Result:    two job arrays: the first computes and caches the gradients of the originals, each in
           one job; the second, when the first is done, compares the queries with them. --dry-run
           prints the sbatch files and the commands instead; --cluster local runs the jobs here.
Afterwards: uv run experiments/paraphrase_similarity.py combine
Run time:  that of its jobs
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from if_query.command_line import parse
from if_query.errors import InputError
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from utils.paraphrase_config import SimilarityConfig, one_line_errors

SCRIPT = Path(__file__).with_name("paraphrase_similarity.py")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SlurmConfig(SimilarityConfig):
    """Submit the similarity of paraphrases as jobs, each for a partition of the queries."""

    num_partitions: int = 10
    """Jobs of each of the two arrays."""
    dry_run: bool = False
    """Print the sbatch files and the commands of the jobs, and submit nothing."""
    cluster: Literal["slurm", "local"] = "slurm"
    """Where jobs run; local takes processes of this machine."""
    max_parallel: int | None = None
    """Jobs at the same time; no limit on SLURM by default, one locally."""
    hours: float = 24.0
    """Longest run time of a job."""
    slurm_partition: str | None = None
    """SLURM's partition (its queue) to submit to."""
    gpus: int = 1
    """GPUs of each job."""
    cpus: int = 8
    """CPU cores of each job."""
    memory_gb: int = 64
    """Memory of each job."""
    log_dir: Path = Path("results/paraphrase/jobs")
    """Folder of the jobs' logs."""


def main(args: Sequence[str] | None = None) -> None:
    """Submit, run or print the jobs."""
    with one_line_errors():
        config = parse(SlurmConfig, program="paraphrase_slurm.py", args=args)
        config.check()
        if config.partition_start is not None:
            raise InputError("--partition-start and --partition-end are chosen here; leave them")
        if config.hours <= 0 or (config.max_parallel is not None and config.max_parallel < 1):
            raise InputError("expected positive --hours and --max-parallel")
        if config.cpus < 1 or config.memory_gb < 1 or config.gpus < 0:
            raise InputError("expected positive --cpus and --memory-gb, and --gpus of at least 0")
        submit(config)


def submit(config: SlurmConfig) -> None:
    """Both arrays, one after the other."""
    bounds = partition_bounds(config)
    arrays = {
        "originals": [command("originals", config, *bound) for bound in bounds],
        "similarities": [command(None, config, *bound) for bound in bounds],
    }
    if config.dry_run:
        show(config, arrays)
    elif config.cluster == "local":
        for name, commands in arrays.items():
            run_here(config, name, commands, bounds)
        print(f"finished {len(bounds)} partitions; now: paraphrase_similarity.py combine")
    else:
        submit_to_slurm(config, arrays)


def partition_bounds(config: SlurmConfig) -> list[tuple[int, int]]:
    """[start, end) of ids for each job, so that all have the same number of queries or one more.

    Raises:
        InputError: if there are fewer samples than partitions.
    """
    from attribution.paraphrases import QUERY_COLUMNS, choose_samples, read_samples

    column = QUERY_COLUMNS[config.setting]
    samples = read_samples(config.dataset, required=("messages", column))
    ids = [one.id for one in choose_samples(samples, config.sample_size, seed=config.seed)]
    count = config.num_partitions
    if not 1 <= count <= len(ids):
        raise InputError(
            f"expected --num-partitions between 1 and {len(ids)}, the number of samples, "
            f"got {count}"
        )
    firsts = [ids[len(ids) * part // count] for part in range(count)]
    return list(zip(firsts, [*firsts[1:], ids[-1] + 1], strict=True))


def command(verb: str | None, config: SlurmConfig, start: int, end: int) -> list[str]:
    """The command line of one job."""
    own = {one.name: getattr(config, one.name) for one in fields(SimilarityConfig)}
    own |= {"partition_start": start, "partition_end": end}
    flags = SimilarityConfig(**own).flags()
    return [sys.executable, str(SCRIPT), *([verb] if verb else []), *flags]


def parameters(config: SlurmConfig, name: str, after: str | None = None) -> dict[str, Any]:
    """What SLURM is asked for, under submitit's names."""
    asked: dict[str, Any] = {
        "job_name": f"paraphrase-{name}",
        "time": round(60 * config.hours),
        "cpus_per_task": config.cpus,
        "mem": f"{config.memory_gb}GB",
        "ntasks_per_node": 1,
    }
    if config.gpus:
        asked["gpus_per_node"] = config.gpus
    if config.max_parallel is not None:
        asked["array_parallelism"] = config.max_parallel
    if config.slurm_partition is not None:
        asked["partition"] = config.slurm_partition
    if after is not None:
        asked["dependency"] = f"afterok:{after}"
    return asked


def show(config: SlurmConfig, arrays: dict[str, list[list[str]]]) -> None:
    """Print what would be submitted: for each array its sbatch file and its jobs' commands."""
    import submitit

    class SbatchText(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # submitit refuses to make the text on a machine without srun

        def text(self, count: int) -> str:
            self.parameters["map_count"] = count
            return self._make_submission_file_text(self._submitit_command_str, "dry-run")

    after = None
    for name, commands in arrays.items():
        executor = SbatchText(config.log_dir)
        executor.update_parameters(**parameters(config, name, after))
        print(f"# ---- {name}.sbatch: {len(commands)} jobs")
        print(executor.text(len(commands)))
        for words in commands:
            print(f"#   {shlex.join(words)}")
        after = f"JOB_ID_OF_{name.upper()}"


def submit_to_slurm(config: SlurmConfig, arrays: dict[str, list[list[str]]]) -> None:
    """Two arrays; the second waits until every job of the first has succeeded."""
    import submitit
    from submitit.helpers import CommandFunction

    after = None
    for name, commands in arrays.items():
        try:
            executor = submitit.SlurmExecutor(config.log_dir)
        except RuntimeError as error:
            raise InputError(
                "no srun here: run this on a SLURM cluster, or with --cluster local or --dry-run"
            ) from error
        executor.update_parameters(**parameters(config, name, after))
        with executor.batch():
            jobs = [executor.submit(CommandFunction(words)) for words in commands]
        after = jobs[0].job_id.split("_")[0]
        print(f"submitted {name}: {len(jobs)} jobs as {after}")


def run_here(
    config: SlurmConfig, name: str, commands: list[list[str]], bounds: list[tuple[int, int]]
) -> None:
    """Run the jobs of one array as processes, so many at a time."""
    import submitit
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.helpers import CommandFunction

    executor = submitit.LocalExecutor(config.log_dir)
    executor.update_parameters(timeout_min=round(60 * config.hours))
    at_once = config.max_parallel or 1
    for first in range(0, len(commands), at_once):
        jobs = [
            (bound, executor.submit(CommandFunction(words)))
            for bound, words in zip(
                bounds[first : first + at_once], commands[first : first + at_once], strict=True
            )
        ]
        for (start, end), job in jobs:
            try:
                job.result()
            except (FailedJobError, UncompletedJobError) as error:
                raise InputError(
                    f"the job {name} of partition [{start}, {end}) failed: {_reason(job, error)}; "
                    f"its log is {job.paths.stderr}"
                ) from error
        print(f"{name}: {min(first + at_once, len(commands))} of {len(commands)} jobs are done")


def _reason(job: Any, error: Exception) -> str:
    text = f"{error}\n{job.stderr() or ''}"
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[0])


if __name__ == "__main__":
    main()
