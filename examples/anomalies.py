"""Find the odd rows of a table by their likelihood: a data frame in, scores out.

python examples/anomalies.py
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from diffeo import commands
from diffeo.data import load_builtin

x, names, labels = load_builtin("breast_cancer")
table = pd.DataFrame(x, columns=names)
benign = table[labels == 1]
usual, unseen = benign[:250], pd.concat([benign[250:], table[labels == 0]])
malignant = [False] * (len(benign) - 250) + [True] * int((labels == 0).sum())

with tempfile.TemporaryDirectory() as folder:
    run, result = Path(folder) / "run", Path(folder) / "anomalies.csv"
    summary = commands.fit(usual, run, model="maf", arguments={"transforms": 2, "hidden": [32]}, epochs=150)
    commands.anomalies(run, unseen, result, alpha=0.05)
    rows = pd.read_csv(result)  # the worst first

odd = np.array(malignant)[rows["row"] - 1]
flagged = rows["anomaly"].to_numpy()
print(f"trained on {len(usual)} benign tumours only: {summary['out_of_fold']['nll']:.1f} nats per row, held out")
print(f"of the {odd.sum()} least likely of {len(unseen)} unseen rows, {odd[: odd.sum()].sum()} are malignant")
print(f"flagged at 5 %: {flagged[odd].mean():.0%} of the malignant ones, {flagged[~odd].mean():.0%} of the benign ones")
print(f"the strangest row: {rows['column'][0]} adds most, {rows['share_' + rows['column'][0]][0]:.1f} nats")
