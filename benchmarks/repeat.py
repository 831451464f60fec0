"""How far trainings with the same seed come apart: bit for bit the same with the same threads, rounding with others.

    source env.sh && python benchmarks/repeat.py [--arm clip] [--threads 1 1 2]

Trains one arm of the sample anew for each number of threads, on the manifest that is there, and evaluates each.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from veclip_core.evaluation.evaluate import evaluate
from veclip_core.evaluation.sets import read_openmoji
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import manifest_table, recipe_of
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.training.arms import ARMS, arm_named
from veclip_core.training.export import load_for_evaluation
from veclip_core.training.loop import train
from veclip_core.training.report import Runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=list(ARMS), default="clip")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("repeat.json"), help="where the numbers go")
    chosen = parser.parse_args()
    chain = Chain(Settings.from_environment(), SCALES["sample"])
    manifest, _ = manifest_table(chain, chosen.arm, arm_named(chosen.arm).weights)
    cache = chain.settings.cache_folder
    openmoji = read_openmoji(cache / "world" / "openmoji")
    found = []
    for number, threads in enumerate(chosen.threads):
        with tempfile.TemporaryDirectory(prefix="veclip-repeat-") as folder:
            runtime = Runtime(cache_folder=cache / "pictures", threads=threads)
            report = train(recipe_of(chain, chosen.arm, seed=0), manifest, folder, runtime=runtime)
            model = load_for_evaluation(report.checkpoint)
            scored = evaluate(model, chosen.arm, openmoji, seed=0, checkpoint=f"{number}")
        found.append(
            {
                "threads": threads,
                "final_loss": report.final_loss,
                "mean_recall": scored.metric("mean_recall"),
                "mean_rank": scored.metric("mean_rank"),
                "seconds": round(report.seconds, 1),
            }
        )
        sys.stderr.write(f"{found[-1]}\n")
    chosen.out.write_text(json.dumps({"arm": chosen.arm, "trainings": found}, indent=2))


if __name__ == "__main__":
    main()
