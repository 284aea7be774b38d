"""Find the odd rows of a table by their likelihood: a data frame in, scores out.

python examples/anomalies.py
"""

import tempfile
from pathlib import Path

import pandas as pd

from diffeo import commands
from diffeo.data import load_builtin

x, names, labels = load_builtin("breast_cancer")
table = pd.DataFrame(x, columns=names)
benign = table[labels == 1]
usual, unseen = benign[:250], pd.concat([benign[250:], table[labels == 0]])
malignant = [False] * (len(benign) - 250) + [True] * int((labels == 0).sum())

with tempfile.TemporaryDirectory() as folder:
    run, scores = Path(folder) / "run", Path(folder) / "scores.csv"
    summary = commands.fit(usual, run, model="maf", arguments={"transforms": 2, "hidden": [32]}, epochs=150)
    commands.score(run, unseen, scores)
    likelihood = pd.read_csv(scores)["log_likelihood"]

order = likelihood.argsort()  # the least likely first
worst = [malignant[i] for i in order[: sum(malignant)]]
print(f"trained on {len(usual)} benign tumours only: {summary['validation']['nll']:.1f} nats per row")
print(f"of the {sum(malignant)} least likely of {len(unseen)} unseen rows, {sum(worst)} are malignant")
