"""A flow inside pocoMC: the evidence of a banana, by preconditioned Monte Carlo.

pip install pocomc; python examples/pocomc_flow.py
"""

import numpy as np
import pocomc
import torch
from scipy.stats import norm

import diffeo
from diffeo.integrations.pocomc import preconditioner

torch.manual_seed(0)
prior = pocomc.Prior([norm(0, 3), norm(0, 3)])


def log_likelihood(x: np.ndarray) -> np.ndarray:
    """A banana: x_1 ~ N(0, 1), x_2 ~ N(x_1^2, 0.5)."""
    return norm.logpdf(x[:, 0]) + norm.logpdf(x[:, 1] - x[:, 0] ** 2, scale=0.5)


flow = diffeo.nsf(2, hidden=(32, 32), transforms=3, preprocess=())
sampler = pocomc.Sampler(
    prior, log_likelihood, vectorize=True, flow=preconditioner(flow), n_effective=256, n_active=128, random_state=0
)
sampler.run(n_total=1024, n_evidence=1024, progress=False)
log_z, error = sampler.evidence()

grid = np.linspace(-12, 12, 1201)
points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
density = np.exp(log_likelihood(points) + norm.logpdf(points, scale=3).sum(1))
truth = float(np.log(density.sum() * (grid[1] - grid[0]) ** 2))
print(f"log Z = {log_z:.3f} ± {error:.3f}, in truth {truth:.3f}")
