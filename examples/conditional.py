"""A conditional density: what y can be, given x, in one command line and in Python.

python examples/conditional.py
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from diffeo import commands
from diffeo.cli import main

# The noise grows with x, and its sign is a coin's: no regression can say this.
generator = np.random.default_rng(0)
x = generator.uniform(0, 3, 4000)
y = np.sign(generator.random(4000) - 0.5) * x + 0.1 * (1 + x) * generator.normal(size=4000)

with tempfile.TemporaryDirectory() as folder:
    run, out = Path(folder) / "run", Path(folder) / "samples.csv"
    commands.fit(pd.DataFrame({"x": x, "y": y}), run, context=["x"], epochs=60, figures=False)
    for value in (0.5, 2.5):
        commands.sample(run, 2000, out, given={"x": value}, force=True)
        sampled = pd.read_csv(out)["y"]
        upper = sampled[sampled > 0]
        print(f"x = {value}: {len(upper) / len(sampled):.0%} above 0, there {upper.mean():.2f} ± {upper.std():.2f}")
        print(f"    in truth 50% above 0, there {value:.2f} ± {0.1 * (1 + value):.2f}")
    # The same from a shell: diffeo sample RUN -n 3 --given x=2.5
    main(["sample", str(run), "-n", "3", "--given", "x=2.5"])
