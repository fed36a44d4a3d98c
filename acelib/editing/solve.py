"""The closed forms of locate-then-edit methods as pure linear algebra; every answer is a pair of factors, never a full matrix.

Letters: K (m, n) keys, R (d, n) residuals, A (m, m) = weight * C seen only through ``solver: X -> A^{-1} X``; dW = left @ right.T (d, m).
With few edits (n << m) the Woodbury identity (A + K K^T)^{-1} K = G (I + K^T G)^{-1}, G = A^{-1} K, needs one n x n system.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

Solver = Callable[[Tensor], Tensor]


def ridge(K: Tensor, R: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    """Least-squares write of residuals at keys, other keys preserved: dW = R K^T (A + K K^T)^{-1}.

    K: (m, n) keys.   R: (d, n) residuals.   solver: x (m, n) -> A^{-1} x.
    Returns: left (d, n), right (m, n), in the unit of R per unit of K.
    Raises: ValueError if K and R hold different numbers of columns, or anything is not finite.
    Source: MEMIT Eq. 14; ACE Eq. 12 (there A = C_0; the weight on C_0 is that of Eq. 11).
    """
    _columns(K, R)
    G = solver(K)
    return _finite(
        R,
        torch.linalg.solve(
            torch.eye(K.shape[1], dtype=K.dtype, device=K.device) + K.T @ G, G, left=False
        ),
    )


def rank_one(
    key: Tensor, at: Tensor, residual: Tensor, solver: Solver | None = None
) -> tuple[Tensor, Tensor]:
    """Exact write of one residual: dW = r u^T / (k . u) with u = A^{-1} key, so that dW k = r.

    key: (m,) direction key (mean over contexts).   at: (m,) key k that must give the residual.   residual: (d,).   solver: None: A = I.
    Returns: left (d, 1), right (m, 1).
    Raises: ValueError if ``at`` is orthogonal to u.
    Source: ROME Eq. 2.
    """
    u = key[:, None] if solver is None else solver(key[:, None])
    scale = at @ u[:, 0]
    if not scale.abs() > torch.finfo(u.dtype).eps * at.norm() * u.norm():
        raise ValueError(
            "the key to write at is orthogonal to the direction key; nothing can be written"
        )
    return _finite(residual[:, None], u / scale)


def remembering(weight: float, history: Tensor | None = None) -> Solver:
    """x -> (weight I + H H^T)^{-1} x by the Woodbury identity: k unknowns for k earlier keys.

    With keys K and H inside a null space, P K and P H, ``ridge`` on it is dW = R K^T P (P (K K^T + H H^T) P + weight I)^{-1}.
    weight: L2 > 0.   history: H (m, k).   Raises ValueError for a weight that is not positive.
    Source: AlphaEdit Eq. 14, in push-through form: n and k unknowns instead of m.
    """
    if not weight > 0:
        raise ValueError(f"weight {weight} is not positive")
    if history is None:
        return lambda x: x / weight
    ridge = weight * torch.eye(history.shape[1], dtype=history.dtype, device=history.device)
    return lambda x: (
        (x - history @ torch.linalg.solve(history.T @ history + ridge, history.T @ x)) / weight
    )


def _columns(K: Tensor, R: Tensor):
    if K.ndim != 2 or R.ndim != 2 or K.shape[1] != R.shape[1] or not K.shape[1]:
        raise ValueError(
            f"keys {tuple(K.shape)} and residuals {tuple(R.shape)} must be (m, n) and (d, n) with the same n >= 1"
        )


def _finite(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    if not (left.isfinite().all() and right.isfinite().all()):
        raise ValueError(
            "the closed form is not finite: keys, residuals or the moment hold NaN or overflow"
        )
    return left, right
