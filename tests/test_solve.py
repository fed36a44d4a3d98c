from inspect import unwrap

import pytest
import torch
from jaxtyping import TypeCheckError

from acelib.editing.solve import null_space_solver, rank_one, ridge

M, D = 12, 7


@pytest.fixture
def A():
    X = torch.randn(M, 3 * M, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return X @ X.T / 36


def randn(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 3, 20])
def test_ridge_is_the_textbook_form(A, n):
    K, R = randn(M, n), randn(D, n, seed=2)
    left, right = ridge(K, R, torch.linalg.solve(A, K))
    assert left.shape == (D, n) and right.shape == (M, n)
    torch.testing.assert_close(
        left @ right.T, R @ K.T @ torch.linalg.inv(A + K @ K.T), rtol=1e-10, atol=1e-12
    )


def test_rank_one_writes_exactly(A):
    key, at, r = randn(M), randn(M, seed=3), randn(D, seed=4)
    for direction in (key, torch.linalg.solve(A, key)):
        left, right = rank_one(at, r, direction)
        torch.testing.assert_close(left @ right.T @ at, r)
    with pytest.raises(ValueError, match="orthogonal"):
        rank_one(torch.eye(M).double()[1], r, torch.eye(M).double()[0])


@pytest.mark.parametrize("history", [0, 5])
def test_a_ridge_inside_a_null_space_is_the_published_system(history):
    K, R, H = randn(M, 3), randn(D, 3, seed=2), randn(M, history, seed=5)
    basis = torch.linalg.qr(randn(M, 8, seed=6))[0]
    P = basis @ basis.T
    plain = torch.linalg.solve(
        P @ (K @ K.T + H @ H.T) + 0.7 * torch.eye(M, dtype=torch.float64), P @ K @ R.T
    ).T
    solver = null_space_solver(0.7, P @ H if history else None)
    left, right = ridge(P @ K, R, solver(P @ K))
    torch.testing.assert_close(left @ right.T, plain, rtol=1e-9, atol=1e-12)


def test_bad_input():
    for R, G, match in (
        (randn(D, 3), randn(M, 2), "with the same n >= 1"),
        (randn(D, 2), randn(M, 1), "must have the keys' shape"),
    ):
        with pytest.raises(TypeCheckError):  # in tests; as users have it, without the checker:
            ridge(randn(M, 2), R, G)
        with pytest.raises(ValueError, match=match):
            unwrap(ridge)(randn(M, 2), R, G)
    with pytest.raises(ValueError, match="not finite"):
        ridge(randn(M, 1) * float("nan"), randn(D, 1), randn(M, 1))
    with pytest.raises(ValueError, match="weight 0"):
        null_space_solver(0)
