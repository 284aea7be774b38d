"""The recipe of tables with categories, whole numbers, gaps and real numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffeo.bases import Uniform
from diffeo.flow import Flow
from diffeo.nets import AnyOrder, Ordered
from diffeo.nets.activations import as_widths
from diffeo.recipes.assembly import Features, Preprocess, event_shape, recipe
from diffeo.transforms import Standardize
from diffeo.transforms.factor import network_sizes
from diffeo.transforms.mixed import Mixed

__all__ = ["mixed"]


@recipe()
def mixed(
    features: Features,
    context: int = 0,
    *,
    columns: Sequence[Mapping[str, Any]] = (),
    hidden: int | Sequence[int] = 512,
    layers: int = 3,
    components: int = 10,
    any_order: bool = True,
    orders: int = 8,
    dropout: float = 0.0,
    preprocess: Preprocess = (),
) -> Flow:
    """An exact density of rows of any kind of column, and every conditional of it (``Mixed``).

    Trained by ``AnyOrderLikelihood``, in one order by maximum likelihood. A category is its number 0, 1, ..., a missing
    cell NaN.

    Args:
        features: how many columns.
        context: how many numbers the density is conditioned on, 0 for none.
        columns: for each column the fields of a ``Factor``; by default all have a smooth density.
        hidden: the width of the network; or that of each layer, all alike, which says how many there are, too.
        layers: how many residual layers it has.
        components: logistics in the density of a smooth column.
        any_order: whether to learn every conditional; else only those of each column given the ones before it, by one
            pass of a masked network instead of one for every column.
        orders: how many orders of the columns the density is the mean over, if any; scoring takes so many times longer.
        dropout: of the network, in training.
        preprocess: nothing; each column is made normal inside.

    Raises:
        ValueError: for another number of columns than features, images, a preprocessing, or sizes out of range.
    """
    if list(preprocess):
        raise ValueError("expected no preprocessing: the columns of a table, which this is for, are made normal inside")
    shape = event_shape(features)
    if len(shape) > 1:
        raise ValueError(f"expected features as a number of columns, got {shape}")
    each: list[Mapping[str, Any]] = list(columns) or [{"steps": [0.0]}] * shape[0]
    if len(each) != shape[0]:
        raise ValueError(f"expected {shape[0]} columns, got {len(each)}")
    if not isinstance(hidden, int):
        widths = as_widths(hidden)
        if len(set(widths)) != 1:
            raise ValueError(f"expected layers of one width, got {widths}")
        hidden, layers = widths[0], len(widths)
    for name, number in (("hidden", hidden), ("layers", layers), ("components", components)):
        if number < 1:
            raise ValueError(f"expected {name} >= 1, got {number}")
    if not any_order:
        each = [{**c, "copies": [copy for copy in c.get("copies", ()) if copy[0] < i]} for i, c in enumerate(each)]
    kind = AnyOrder if any_order else Ordered
    network = kind(**network_sizes(each, components), hidden=hidden, layers=layers, context=context, dropout=dropout)
    transform, base = Mixed(network, each, components, orders if any_order else 1), Uniform(shape)
    if not context:
        return Flow(base, transform)
    return Flow(base, transform, context_shape=(context,), context_transform=Standardize(context))
