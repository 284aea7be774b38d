"""Learn a folder of Parquet files by Ray Train, whose workers read row groups of their own and average gradients.

pip install "ray[train]"; python examples/ray_train.py [DATA RUN]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from diffeo.commands import fit, info

WORKERS = 2
ENTROPY = np.log(2 * np.pi * np.e) + np.log(0.5)  # of the rows made here


def train(settings: dict) -> None:
    """What each worker does: diffeo finds the others by the process group that Ray has made."""
    fit(settings["data"], settings["run"], epochs=3, memory=0, figures=False)  # 0 GiB in memory: read it in parts


def write_files(folder: Path) -> None:
    """Four files of correlated columns."""
    folder.mkdir()
    for number in range(4):
        z = np.random.default_rng(number).normal(size=(5000, 2))
        frame = pd.DataFrame({"a": z[:, 0], "b": z[:, 0] + 0.5 * z[:, 1]})
        frame.to_parquet(folder / f"{number}.parquet", row_group_size=1000)


def main() -> None:
    """Train, and print the negative log-likelihood of the rows held out."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        data, run = place / "data", place / "run"
        if sys.argv[1:]:
            data, run = (Path(word).resolve() for word in sys.argv[1:])  # where all workers find them
        else:
            write_files(data)
        ray.init(num_cpus=WORKERS, include_dashboard=False)
        trainer = TorchTrainer(
            train,
            train_loop_config={"data": str(data), "run": str(run)},
            scaling_config=ScalingConfig(num_workers=WORKERS),
            run_config=RunConfig(storage_path=str(place / "ray")),
            torch_config=TorchConfig(backend="gloo"),
        )
        trainer.fit()
        ray.shutdown()
        nll = info(run)["metrics"]["validation"]["nll"]
    print(f"held out: {nll:.3f} nats per row; the entropy of the files made here is {ENTROPY:.3f}")


if __name__ == "__main__":
    main()
