"""Trains and certifies a list of configs and seeds, and makes one table of them.

    python launch/sweep.py --configs=configs/digits.py:linf,configs/digits.py:scratch --seeds=0,1,2 --root=runs/digits

Each run is `launch/train.py` and `launch/certify.py` in a process of its own, in ROOT/METHOD (one seed) or
ROOT/METHOD/seed_S. What is done is skipped, what was interrupted resumes. The table goes to the terminal and to
ROOT/table.md and ROOT/table.tex, a picture to ROOT/methods.png. Arguments after `--` go to every train.py and
certify.py, for example `-- --config.epochs=5`.
"""

import concurrent.futures
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from rich.console import Console

from cure_jax.report import plots, tables

_CONFIGS = flags.DEFINE_list("configs", None, "Configs, each with a method after a colon.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of each config.")
_ROOT = flags.DEFINE_string("root", None, "Where the work directories go.")
_METHOD = flags.DEFINE_string("method", "crown", "How to bound, see launch/certify.py.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 1000, "Images to certify.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What to certify.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.")

_LAUNCH = Path(__file__).parent
Run = tuple[str, str, Path]


def main(arguments: Sequence[str]) -> None:
    """Runs what is missing, and reports."""
    root = Path(str(_ROOT.value))
    runs = [
        (config, seed, _workdir(root, config, seed)) for config in _CONFIGS.value or [] for seed in _SEEDS.value or []
    ]
    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
        futures = [pool.submit(_run, run, arguments[1:]) for run in runs]
        for future in concurrent.futures.as_completed(futures):
            if future.exception() is not None:
                pool.shutdown(cancel_futures=True)
                sys.exit(f"error: {future.exception()}")
    results = [json.loads(_result(workdir).read_text()) for *_, workdir in runs]
    _report(root, results)


def _workdir(root: Path, config: str, seed: str) -> Path:
    method = config.partition(":")[2] or Path(config).stem
    return root / method if len(_SEEDS.value or []) == 1 else root / method / f"seed_{seed}"


def _result(workdir: Path) -> Path:
    return workdir / ("certify.json" if _SPLIT.value == "test" else "validation.json")


def _run(run: Run, overrides: Sequence[str]) -> None:
    config, seed, workdir = run
    if _result(workdir).exists():
        done = json.loads(_result(workdir).read_text())
        wanted = (_METHOD.value, min(_NUM_EXAMPLES.value, done["num_examples"]))
        if (done["method"], done["num_examples"]) == wanted:
            print(f"{workdir}: done before", flush=True)
            return
    common = [f"--config={config}", f"--config.seed={seed}", f"--workdir={workdir}", *overrides]
    certify = [f"--method={_METHOD.value}", f"--num_examples={_NUM_EXAMPLES.value}", f"--split={_SPLIT.value}"]
    print(f"{workdir}: started", flush=True)
    for script, extra in (("train.py", []), ("certify.py", certify)):
        _call([sys.executable, str(_LAUNCH / script), *common, *extra])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    print(done.stdout.strip(), flush=True)


def _report(root: Path, results: list[dict]) -> None:
    def label(result: tables.Result) -> str:
        return result["config"]["name"] or result["config"]["dataset"]

    Console().print(tables.terminal(results, label=label))
    (root / "table.md").write_text(tables.markdown(results, label=label) + "\n")
    (root / "table.tex").write_text(tables.latex(results, label=label) + "\n")
    plots.compare_methods(root / "methods.png", results, label=label)
    print(
        f"Tables and a picture: {root}/table.md, table.tex, methods.png; per run certify.json, certify.npz, certify.png"
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["configs", "root"])
    app.run(main)
