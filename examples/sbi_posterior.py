"""A flow inside sbi: the posterior of a simulator's parameters by neural posterior estimation.

pip install sbi; python examples/sbi_posterior.py
"""

import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from diffeo.integrations.sbi import density_estimator

torch.manual_seed(0)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((2000,))
x = theta + 0.5 * torch.randn_like(theta)  # the simulator

# The posterior is a normal distribution cut off by the prior's box: most of one here is cut off.
trainer = NPE(prior, density_estimator(prior=prior, hidden=(32, 32)), show_progress_bars=False)
trainer.append_simulations(theta, x).train(max_num_epochs=40)
posterior = trainer.build_posterior()
observed = torch.tensor([[0.9, -0.2]])
samples = posterior.sample((5000,), x=observed, show_progress_bars=False)
inside = bool((samples.abs() < 1).all())
truth = torch.distributions.Normal(observed, 0.5)
draws = truth.sample((50_000,))[:, 0]
draws = draws[(draws.abs() < 1).all(1)]
print(f"samples within the prior: {inside}")
print(f"posterior mean {samples.mean(0).numpy().round(2)}, in truth {draws.mean(0).numpy().round(2)}")
print(f"posterior deviation {samples.std(0).numpy().round(2)}, in truth {draws.std(0).numpy().round(2)}")
error = float((samples.mean(0) - draws.mean(0)).abs().max())
