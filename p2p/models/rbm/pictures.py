"""Pictures of a stack: filters of its lowest machine, and rows beside what the stack makes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossip.arguments import integer, series
from gossip.errors import UsageError
from p2p.models.rbm.stack import Stack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS_MAX = 32
"""Of rows and reconstructions, in columns of eight."""


def picture(stack: Stack, rows: ArrayLike | None, filters: int, shape: tuple[int, int] | None) -> Figure:
    """See `StackedRBM.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plot needs matplotlib, found none: pip install 'deepdist-p2p[lab]'") from None
    height, width = _shape(stack.sizes[0], shape)
    count = min(integer("filters", filters, 1), stack.sizes[1])
    weights = stack.layers[0].W
    strongest = np.argsort(-np.square(weights).sum(axis=0), kind="stable")[:count]
    panels = [("filters", _tiled(weights.T[strongest], height, width), "gray")]
    if rows is not None:
        some = stack.layers[0].rows(rows, "rows")[:ROWS_MAX]
        both = np.stack([some, stack.reconstruct(some)], axis=1).reshape(-1, some.shape[1])
        panels.append(("rows and reconstructions", _tiled(both, height, width, columns=8), "gray_r"))
    figure = Figure(figsize=(5 * len(panels), 5), layout="constrained")
    for number, (title, image, colors) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.imshow(image, cmap=colors)
        axes.set_title(title)
        axes.set_axis_off()
    return figure


def _shape(units: int, shape: Any) -> tuple[int, int]:
    if shape is None:
        side = math.isqrt(units)
        if side * side != units:
            raise UsageError(f"{units} visible units are no square, expected shape=(height, width) of a picture")
        return side, side
    sides = series("shape", shape, lambda name, side: integer(name, side, 1), "(height, width)")
    if len(sides) != 2 or sides[0] * sides[1] != units:
        raise UsageError(f"shape={shape!r}, expected (height, width) whose product is {units}, the visible units")
    return sides[0], sides[1]


def _tiled(images: NDArray[Any], height: int, width: int, columns: int | None = None) -> NDArray[Any]:
    """All images in one, each scaled to the numbers from 0 to 1, with a line between them."""
    columns = columns or math.isqrt(len(images) - 1) + 1
    lines = -(-len(images) // columns)
    low, high = images.min(axis=1, keepdims=True), images.max(axis=1, keepdims=True)
    scaled = (images - low) / np.maximum(high - low, 1e-12)
    sheet = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1), 0.5)
    for number, image in enumerate(scaled):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image.reshape(height, width)
    return sheet
