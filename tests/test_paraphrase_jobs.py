"""`paraphrase_slurm.py` by its command line: jobs that are shown, refused, or run here."""

import pytest
from paraphrase_cases import refused


def test_a_dry_run_prints_the_sbatch_files_and_submits_nothing(
    paraphrase_scripts, paraphrase_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    paraphrase_scripts.slurm(
        f"--model m --dataset {paraphrase_data} --num-partitions 3 --dry-run --candidates all "
        "--no-force-original --max-parallel 2 --hours 1.5 --slurm-partition queue".split()
    )
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 2
    assert shown.count("#SBATCH --array=0-2%2") == 2
    assert shown.count("#SBATCH --time=90") == 2
    assert shown.count("#SBATCH --partition=queue") == 2
    assert shown.count("#SBATCH --dependency=afterok:JOB_ID_OF_ORIGINALS") == 1
    jobs = [line for line in shown.splitlines() if "paraphrase_similarity.py" in line]
    assert len(jobs) == 6
    assert all("--candidates all --no-force-original" in job for job in jobs)
    assert sum("paraphrase_similarity.py originals" in job for job in jobs) == 3
    bounds = [job.partition("--partition-start ")[2] for job in jobs[3:]]
    assert [bound.split()[:3:2] for bound in bounds] == [["0", "2"], ["2", "8"], ["8", "13"]]
    assert list(tmp_path.iterdir()) == [paraphrase_data]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--num-partitions 9 --dry-run", "between 1 and 8"),
        ("--num-partitions 0 --dry-run", "between 1 and 8"),
        ("--partition-start 0 --partition-end 3 --dry-run", "are chosen here"),
        ("--projection-fraction 2 --dry-run", "projection fraction in (0, 1]"),
        ("--max-parallel 0 --dry-run", "--max-parallel"),
        ("--cpus 0 --dry-run", "--cpus"),
        ("--memory-gb 0 --dry-run", "--memory-gb"),
        ("--gpus -1 --dry-run", "--gpus"),
        ("--num-partitions 2", "no srun here"),
    ],
)
def test_bad_arguments_of_the_jobs_are_one_line(
    paraphrase_scripts, paraphrase_data, tmp_path, capsys, monkeypatch, flags, part
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    words_given = ["--model", "m", "--dataset", str(paraphrase_data), *flags.split()]
    refused(capsys, lambda: paraphrase_scripts.slurm(words_given), part)


@pytest.mark.slow  # two processes for each of four jobs
def test_jobs_run_here_make_what_one_run_makes(
    paraphrase_scripts, start_similarity, paraphrase_data, make_model_folder, tmp_path
):
    whole = start_similarity("--computation-type dot-product --candidates bm25:3", "whole")
    paraphrase_scripts.slurm(
        f"--model {make_model_folder()} --dataset {paraphrase_data} --device cpu "
        "--num-partitions 2 --computation-type dot-product --candidates bm25:3 "
        f"--output-dir {tmp_path / 'jobs'} "
        f"--log-dir {tmp_path / 'logs'} --cluster local --max-parallel 2".split()
    )
    paraphrase_scripts.similarity(["combine", "--output-dir", str(tmp_path / "jobs")])
    name = "paraphrased/dot-product_bm25-3.json"
    assert (whole / name).read_bytes() == (tmp_path / "jobs" / name).read_bytes()


@pytest.mark.slow
def test_a_job_that_fails_here_is_one_line_with_its_partition(
    paraphrase_scripts, paraphrase_data, tmp_path, capsys
):
    flags = f"--model ./none --dataset {paraphrase_data} --num-partitions 2 --cluster local "
    flags += f"--log-dir {tmp_path / 'logs'} --output-dir {tmp_path / 'jobs'}"
    refused(
        capsys,
        lambda: paraphrase_scripts.slurm(flags.split()),
        "the job originals of partition [0, 5) failed: error: ./none: no such model folder",
    )
