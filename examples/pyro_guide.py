"""A flow inside Pyro: an amortised guide, conditional on the data, and an automatic guide.

pip install pyro-ppl; python examples/pyro_guide.py
"""

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

import diffeo
from diffeo.integrations.pyro import AutoFlow, distribution

torch.manual_seed(0)
pyro.clear_param_store()
y = torch.linspace(-2, 2, 64)[:, None]  # one observation each of 64 unknown numbers


def model(y: torch.Tensor) -> None:
    """z ~ N(0, 1), y ~ N(z, 0.5): the posterior of z is N(0.8 y, 0.2)."""
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


flow = diffeo.iaf(1, context=1, hidden=(16,), transforms=1, preprocess=())


def guide(y: torch.Tensor) -> None:
    """The posterior of each z, given its y."""
    pyro.module("flow", flow)
    with pyro.plate("rows", len(y)):
        pyro.sample("z", distribution(flow, y))


svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
losses = [svi.step(y) for _ in range(600)]
z = flow.sample(4000, y)
error = float((z.mean(0) - 0.8 * y).abs().max())
print(f"posterior means differ by at most {error:.2f}, deviation {z.std(0).mean():.3f}, in truth {0.2**0.5:.3f}")


def funnel() -> None:
    """Neal's funnel, in two dimensions."""
    scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, scale.exp()))


automatic = AutoFlow(funnel)
svi = SVI(funnel, automatic, Adam({"lr": 0.01}), Trace_ELBO(num_particles=64, vectorize_particles=True))
bound = -sum(svi.step() for _ in range(400)[-50:]) / 50
print(f"ELBO of the funnel {bound:.3f}, at best 0")
