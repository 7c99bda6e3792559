"""Linear subspaces of text states and the orthogonal projections onto them and out of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange

from ..errors import InputError

RCOND = 1e-4
"""Directions whose singular value is below this share of the largest one count as noise.

Prompts with one token masked are near-identical vectors, so their matrix is badly conditioned; a pseudo-inverse of its
Gram matrix would square that.
"""


@dataclass(frozen=True, eq=False)
class Subspace:
    """A subspace as an orthonormal basis ``[D, r]`` in float64; ``r`` may be 0."""

    basis: torch.Tensor

    @property
    def rank(self) -> int:
        """Dimension of the subspace."""
        return self.basis.shape[1]

    def vectors(self) -> torch.Tensor:
        """The basis as vectors ``[r, D]``, one a row."""
        rows: torch.Tensor = rearrange(self.basis, "d r -> r d")
        return rows

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """``P x`` for vectors ``[..., D]``, in float64."""
        x = x.to(self.basis)
        return (x @ self.basis) @ self.vectors()

    def remove(self, x: torch.Tensor) -> torch.Tensor:
        """``(I - P) x`` for vectors ``[..., D]``, in float64."""
        return x.to(self.basis) - self.project(x)

    def distance(self, x: torch.Tensor) -> torch.Tensor:
        """Euclidean distance of vectors ``[..., D]`` from the subspace, ``[...]``, in float64."""
        lengths: torch.Tensor = self.remove(x).norm(dim=-1)
        return lengths

    def to(self, device: torch.device) -> Subspace:
        """The same subspace on another device."""
        return Subspace(self.basis.to(device))


def span(vectors: torch.Tensor, rcond: float = RCOND) -> Subspace:
    """The subspace that vectors span, by a singular value decomposition of the vectors themselves.

    The same as ``C (C^T C)^+ C^T`` with the vectors as columns of C (SAFREE, section 3.2), without the squared
    condition number of the Gram matrix.

    Args:
        vectors: ``[n, D]``; no vector, or only zeros, span the subspace of dimension 0.
        rcond: smallest singular value that counts, as a share of the largest.

    Raises:
        InputError: if the vectors are not a matrix, or hold values that are not finite.
    """
    if vectors.ndim != 2:
        raise InputError("vectors", f"their shape is {tuple(vectors.shape)}", "[n, D], one vector a row")
    rows = vectors.double()
    if not bool(torch.isfinite(rows).all()):
        raise InputError(
            "vectors", "they hold values that are not finite", "finite numbers", "encode in float32 or bfloat16"
        )
    if len(rows) == 0:
        return Subspace(rows.new_zeros(rows.shape[1], 0))
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    kept = (values > rcond * values[0]) & (values > 0)
    return Subspace(rearrange(right[kept], "r d -> d r").contiguous())
