"""Learn a density in the plane, ten lines: train, score, sample.

python examples/density.py
"""

import torch

import diffeo
from diffeo.data import ENTROPY, load_builtin

x = torch.tensor(load_builtin("checkerboard", rows=20_000).x, dtype=torch.float32)
flow = diffeo.nsf(features=2, hidden=(64, 64))
result = diffeo.fit(diffeo.MaximumLikelihood(flow), x, epochs=40, progress=True)

test = torch.tensor(load_builtin("checkerboard", rows=10_000, seed=1).x, dtype=torch.float32)
with torch.no_grad():
    nll = -flow.log_prob(test).mean()
print(f"held-out negative log-likelihood {nll:.3f} nats; the best possible is {ENTROPY['checkerboard']:.3f}")
print("five samples:", flow.sample(5).numpy().round(2).tolist())
