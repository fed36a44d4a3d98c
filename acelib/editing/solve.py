"""The closed forms of locate-then-edit methods as pure linear algebra.

Every answer is a pair of factors, never a full matrix: dW = left @ right.T (d, m).
Letters: K (m, n) keys, R (d, n) residuals, A (m, m) = weight * C, which is only ever seen solved
for: G = A^{-1} K. With few edits (n << m) the Woodbury identity
(A + K K^T)^{-1} K = G (I + K^T G)^{-1} needs one n x n system.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Solver = Callable[[Tensor], Tensor]  #: x (m, n) -> A^{-1} x


def ridge(K: Tensor, R: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares write of residuals at keys, other keys preserved: dW = R K^T (A + K K^T)^{-1}.

    K: (m, n) keys.   R: (d, n) residuals.   G: (m, n) = A^{-1} K.
    Returns: left (d, n), right (m, n), in the unit of R per unit of K.
    Raises: ValueError if K, R and G hold different numbers of columns, or anything is not finite.
    Source: MEMIT Eq. 14; ACE Eq. 12 (there A = C_0; the weight on C_0 is that of Eq. 11).
    """
    _check_columns(K, R, G)
    system = torch.eye(K.shape[1], dtype=K.dtype, device=K.device) + K.T @ G
    return _finite(R, torch.linalg.solve(system, G, left=False))


def rank_one(key: Tensor, residual: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Exact write of one residual: dW = r u^T / (k . u), so that dW k = r.

    key: (m,) k, which must give the residual.   residual: (d,) r.
    direction: (m,) u: A^{-1} times the mean key over contexts, or the mean key itself.
    Returns: left (d, 1), right (m, 1).
    Raises: ValueError if the key is orthogonal to the direction.
    Source: ROME Eq. 2.
    """
    scale = key @ direction
    if not scale.abs() > torch.finfo(direction.dtype).eps * key.norm() * direction.norm():
        raise ValueError("the key to write at is orthogonal to the direction; nothing is written")
    return _finite(residual[:, None], direction[:, None] / scale)


def null_space_solver(weight: float, history: Tensor | None = None) -> Solver:
    """x -> (weight I + H H^T)^{-1} x by the Woodbury identity: k unknowns for k earlier keys.

    With keys K and H inside a null space, P K and P H, ``ridge`` on it is
    dW = R K^T P (P (K K^T + H H^T) P + weight I)^{-1}.
    weight: L2 > 0.   history: H (m, k).   Raises ValueError for a weight that is not positive.
    Source: AlphaEdit Eq. 14, in push-through form: n and k unknowns instead of m.
    """
    if not weight > 0:
        raise ValueError(f"weight {weight} is not positive")
    if history is None:
        return lambda x: x / weight
    system = weight * torch.eye(history.shape[1], dtype=history.dtype, device=history.device)

    def solve(x: Tensor) -> Tensor:
        inner = torch.linalg.solve(history.T @ history + system, history.T @ x)
        return (x - history @ inner) / weight

    return solve


def _check_columns(K: Tensor, R: Tensor, G: Tensor):
    if K.ndim != 2 or R.ndim != 2 or K.shape[1] != R.shape[1] or not K.shape[1]:
        raise ValueError(
            f"keys {tuple(K.shape)} and residuals {tuple(R.shape)} must be (m, n) and (d, n) "
            "with the same n >= 1"
        )
    if G.shape != K.shape:
        raise ValueError(f"solved keys {tuple(G.shape)} must have the keys' shape {tuple(K.shape)}")


def _finite(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    if not (left.isfinite().all() and right.isfinite().all()):
        raise ValueError(
            "the closed form is not finite: keys, residuals or the moment hold NaN or overflow"
        )
    return left, right
