"""The closed forms of locate-then-edit methods as pure linear algebra.

Every answer is a pair of factors, never a full matrix: dW = left @ right.T (d, m).
Letters: K (m, n) keys, R (d, n) residuals, A (m, m) = weight * C, which is only ever seen solved
for: G = A^{-1} K; m is d_mlp, d is d_model. With few edits (n << m) the Woodbury identity
(A + K K^T)^{-1} K = G (I + K^T G)^{-1} needs one n x n system.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

#: x -> A^{-1} x
Solver = Callable[[Float[Tensor, "d_mlp ..."]], Float[Tensor, "d_mlp ..."]]


def ridge(
    K: Float[Tensor, "d_mlp n"], R: Float[Tensor, "d_model n"], G: Float[Tensor, "d_mlp n"]
) -> tuple[Float[Tensor, "d_model n"], Float[Tensor, "d_mlp n"]]:
    """Least-squares write of residuals at keys, other keys preserved: dW = R K^T (A + K K^T)^{-1}.

    K: keys.   R: residuals.   G: A^{-1} K.
    Returns: left and right, in the unit of R per unit of K.
    Raises: ValueError if K, R and G hold different numbers of columns, or anything is not finite.
    Source: MEMIT Eq. 14; ACE Eq. 12 (there A = C_0; the weight on C_0 is that of Eq. 11).
    """
    _check_columns(K, R, G)
    system = torch.eye(K.shape[1], dtype=K.dtype, device=K.device) + K.T @ G
    return _finite(R, torch.linalg.solve(system, G, left=False))


def rank_one(
    key: Float[Tensor, " d_mlp"],
    residual: Float[Tensor, " d_model"],
    direction: Float[Tensor, " d_mlp"],
) -> tuple[Float[Tensor, "d_model 1"], Float[Tensor, "d_mlp 1"]]:
    """Exact write of one residual: dW = r u^T / (k . u), so that dW k = r.

    key: k, which must give the residual.   residual: r.
    direction: u, A^{-1} times the mean key over contexts, or the mean key itself.
    Returns: left, right.
    Raises: ValueError if the key is orthogonal to the direction.
    Source: ROME Eq. 2.
    """
    scale = key @ direction
    if not scale.abs() > torch.finfo(direction.dtype).eps * key.norm() * direction.norm():
        raise ValueError("the key to write at is orthogonal to the direction; nothing is written")
    return _finite(residual[:, None], direction[:, None] / scale)


def null_space_solver(weight: float, history: Float[Tensor, "d_mlp keys"] | None = None) -> Solver:
    """x -> (weight I + H H^T)^{-1} x by the Woodbury identity: k unknowns for k earlier keys.

    With keys K and H inside a null space, P K and P H, ``ridge`` on it is
    dW = R K^T P (P (K K^T + H H^T) P + weight I)^{-1}.
    weight: L2 > 0.   history: H.   Raises ValueError for a weight that is not positive.
    Source: AlphaEdit Eq. 14, in push-through form: n and k unknowns instead of m.
    """
    if not weight > 0:
        raise ValueError(f"weight {weight} is not positive")
    if history is None:
        return lambda x: x / weight
    system = weight * torch.eye(history.shape[1], dtype=history.dtype, device=history.device)

    def solve(x: Float[Tensor, "d_mlp ..."]) -> Float[Tensor, "d_mlp ..."]:
        inner = torch.linalg.solve(history.T @ history + system, history.T @ x)
        return (x - history @ inner) / weight

    return solve


def _check_columns(K: Tensor, R: Tensor, G: Tensor) -> None:
    if K.ndim != 2 or R.ndim != 2 or K.shape[1] != R.shape[1] or not K.shape[1]:
        raise ValueError(
            f"keys {tuple(K.shape)} and residuals {tuple(R.shape)} must be (m, n) and (d, n) "
            "with the same n >= 1"
        )
    if G.shape != K.shape:
        raise ValueError(f"solved keys {tuple(G.shape)} must have the keys' shape {tuple(K.shape)}")


def _finite(
    left: Float[Tensor, "d_model n"], right: Float[Tensor, "d_mlp n"]
) -> tuple[Float[Tensor, "d_model n"], Float[Tensor, "d_mlp n"]]:
    if not (left.isfinite().all() and right.isfinite().all()):
        raise ValueError(
            "the closed form is not finite: keys, residuals or the moment hold NaN or overflow"
        )
    return left, right
