"""`TransferRows`: where the pages of one transfer lie in a pool, numbered once for all frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtransfer.pages.layout import FrameShape, row_numbers
from kvtransfer.pages.staging import PageRows, RowIndex


class TransferRows:
    """The rows of some pages of a transfer in all layers.

    The links of several ranks may share one; each calls with `PageRows` of its own.
    """

    def __init__(self, pages: Sequence[int], offset: int = 0) -> None:
        """`pages` of the pool are, in order, the pages from number `offset` of the transfer."""
        self.num_pages = len(pages)
        self._pages = np.asarray(pages, dtype=np.int64)
        self._offset = offset
        self._indices: dict[PageRows, RowIndex] = {}
        """[layers, pages], for each link: the numbers of the rows in the pool."""

    def prepare(self, pool: PageRows) -> None:
        """Numbers the rows for a link, unless that was done. Copies them to its device."""
        if pool not in self._indices:
            every = FrameShape(0, self.num_pages, 0, pool.num_layers)
            index = pool.index(row_numbers(every, self._pages, pool.num_pages))
            self._indices[pool] = index.reshape(pool.num_layers, self.num_pages)

    def index(self, shape: FrameShape, pool: PageRows) -> RowIndex:
        """Returns the numbers of a frame's rows, [rows of the frame], in the order of the frame.

        The frame must be one of these pages. It copies nothing if it has all of them.
        """
        self.prepare(pool)
        first_page = shape.offset - self._offset
        last_page, last_layer = first_page + shape.num_pages, shape.first_layer + shape.num_layers
        rows = self._indices[pool][shape.first_layer : last_layer, first_page:last_page]
        return rows.reshape(-1)
