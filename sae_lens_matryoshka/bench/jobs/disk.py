"""How much disk the caches of a benchmark take at most; said, and checked, before it begins."""

import shutil
from pathlib import Path
from typing import Any

from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.evals.catalogue import eval_config
from sae_lens_matryoshka.bench.jobs.plan import Job
from sae_lens_matryoshka.settings.yaml_file import ConfigError

FLOAT32 = 4  # SAEBench stores activations so, whatever the model's type
LARGEST_VOCABULARY = 300_000
SAE_PROBES_ROWS = 5_000  # its largest data set
CLASSES = 5  # of SAEBench's data sets, at most
SCR_GROUPS = 6


def cache_bytes(job: Job, d_in: int) -> int:
    """
    An upper bound of what a job keeps on disk while it runs.

    Args:
        job: The job.
        d_in: Numbers per token at the hook.
    """
    if job.eval == "core":
        return 0
    if job.eval == "fidelity":
        rows = job.fields["sequences"] * job.fields["context_size"]
    else:
        rows = _rows(job.eval, eval_config(job.eval, job.fields))
    return rows * d_in * FLOAT32


def _rows(name: str, config: Any) -> int:
    if name == "absorption":
        return 2 * LARGEST_VOCABULARY  # once as a memory map, once as an archive
    if name == "sae_probes":
        return SAE_PROBES_ROWS * len(config.dataset_names)
    if name == "sparse_probing":
        texts = (config.probe_train_set_size + config.probe_test_set_size) // 2
        return CLASSES * texts * config.context_length * len(config.dataset_names)
    texts = (config.train_set_size + config.test_set_size) // 2
    if name == "tpp":
        return CLASSES * texts * config.context_length * len(config.dataset_names)
    pairs = sum(len(config.column1_vals_lookup[name]) for name in config.dataset_names)
    return SCR_GROUPS * texts * config.context_length * pairs


def check_disk(config: BenchConfig, jobs: list[Job], d_in: int) -> int:
    """
    The disk that the caches still take at most at one time.

    Args:
        config: The benchmark.
        jobs: What will run; caches go when their job is done.
        d_in: Numbers per token at the hook.

    Returns:
        Bytes.

    Raises:
        ConfigError: There is less.
    """
    missing = (max(0, cache_bytes(job, d_in) - _bytes_in(Path(job.work))) for job in jobs)
    needed = sum(sorted(missing, reverse=True)[: config.jobs])
    free = shutil.disk_usage(_existing(config.output)).free
    if needed > free:
        raise ConfigError(
            f"The caches need up to {in_gigabytes(needed)} in {config.output}, but {in_gigabytes(free)} "
            "are free. Choose another output, fewer data sets or smaller train and test sets, or jobs: 1."
        )
    return needed


def _bytes_in(folder: Path) -> int:
    """What an interrupted run has left there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def in_gigabytes(n_bytes: int) -> str:
    """Bytes for people."""
    return f"{n_bytes / 1e9:.1f} GB"


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
