"""What a weight is used for: the uncentred second moment of the keys (inputs of fc2) over a text.

    C = 1/T sum_t k_t k_t^T

and, for an editor that writes attention's output projections, the same of what those read. One
pass serves all layers. Each layer's matrix is cached under a name that holds everything it depends
on: the model's fingerprint, the layer, the texts, the precision.
Source: ROME Section 3.1, MEMIT Eq. 15 (C_0 = weight * C).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from platformdirs import user_cache_path
from torch import Tensor

from ..model.lm import LM, Part
from ..model.states import Site, State, replaced
from ..model.update import load_tensors, save_tensors
from ..records import quoted
from .solve import Solver

#: Of the mean diagonal of C: eigenvalues below it are taken for undetermined.
LEAST = 1e-9


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments C_l by layer, float64 means over token positions."""

    matrices: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    #: how many token positions
    tokens: int
    #: fingerprint of the model
    model: str = ""
    #: what was added to C_l's diagonal to make it invertible, 0.0 for nothing; set by ``solver``
    ridge: dict[int, float] = field(default_factory=dict)
    #: the same of what attention's output projections read, if anybody has asked
    attn: Moments | None = None
    _factors: dict[int, Float[Tensor, "d_mlp d_mlp"]] = field(default_factory=dict, repr=False)
    _spectra: dict[int, Float64[Tensor, " d_mlp"]] = field(default_factory=dict, repr=False)
    _bases: dict[tuple, tuple[Float64[Tensor, "d_mlp directions"], bool]] = field(
        default_factory=dict, repr=False
    )

    def __getitem__(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        if layer not in self.matrices:
            raise ValueError(
                f"no second moment of layer {layer}; "
                f"there are those of layers {sorted(self.matrices)}"
            )
        return self.matrices[layer]

    def of(self, part: Part) -> Moments:
        """Of the keys of FFNs ("mlp") or of attention's output projections ("attn").

        Raises ValueError if there are none of attention.
        """
        if part == "mlp":
            return self
        if self.attn is None:
            raise ValueError(
                "no second moments of attention are given; an editor that writes attention's "
                "output projections needs them"
            )
        return self.attn

    def rank(self, layer: int) -> int:
        """How many directions the texts determine: eigenvalues of C above ``LEAST`` of its mean
        diagonal.
        """
        return int((self._spectrum(layer) >= LEAST * self[layer].diagonal().mean()).sum())

    def condition(self, layer: int) -> float:
        """The largest eigenvalue of C over its smallest; infinite if that is not positive."""
        values = self._spectrum(layer)
        return float(values[-1] / values[0]) if values[0] > 0 else float("inf")

    def _spectrum(self, layer: int) -> Float64[Tensor, " d_mlp"]:
        """The eigenvalues of C in ascending order, computed once."""
        if layer not in self._spectra:
            self._spectra[layer] = torch.linalg.eigvalsh(self[layer].double())
        return self._spectra[layer]

    def solver(self, layer: int, weight: float) -> Solver:
        """x (d_mlp, n) -> (weight * C)^{-1} x, in float64.

        One Cholesky factor of C is kept for any weight. Directions in which keys have less than
        ``LEAST`` of their mean square are not determined by the texts: rounding in a float32 key is
        as large, and C^{-1} would blow it up. If there are any, C gets a ridge that lifts all above
        it; a warning says so, and ``ridge`` records it.
        Raises ValueError for a weight that is not positive, a layer that is not there, a moment of
        zeros or NaN.
        """
        if not weight > 0:
            raise ValueError(f"weight {weight} of the second moment must be positive")
        if layer not in self._factors:
            self._factors[layer], self.ridge[layer] = self._factor(layer)
        factor = self._factors[layer]

        def solve(x: Float[Tensor, "d_mlp n"]) -> Float64[Tensor, "d_mlp n"]:
            half = torch.linalg.solve_triangular(factor, x.to(factor), upper=False)
            return torch.linalg.solve_triangular(factor.T, half, upper=True) / weight

        return solve  # cholesky_solve would copy the factor

    def _factor(self, layer: int) -> tuple[Float64[Tensor, "d_mlp d_mlp"], float]:
        """The Cholesky factor of C, and what was added to its diagonal for it."""
        C = self[layer]
        scale, d = C.diagonal().mean().item(), len(C)
        if not 0 < scale < float("inf"):
            raise ValueError(f"the second moment of layer {layer} is zero or not finite")
        # 1. C - least I has a factor if and only if every eigenvalue is above ``least``.
        least = LEAST * scale
        identity = torch.eye(d, dtype=C.dtype, device=C.device)
        if not torch.linalg.cholesky_ex(C - least * identity).info:
            return torch.linalg.cholesky(C), 0.0
        # 2. Else all are lifted until the lowest one is above it.
        lowest = self._spectrum(layer)[0].item()
        if not lowest > -1e-6 * scale:
            raise ValueError(f"the second moment of layer {layer} is not positive semi-definite")
        ridge = least - min(lowest, 0.0)
        warnings.warn(
            f"the second moment of layer {layer} has rank {self.rank(layer)} of {d} over "
            f"{self.tokens} tokens (condition {self.condition(layer):.1g}); {ridge:.2g} is added "
            "to its diagonal. More texts determine it better",
            stacklevel=3,
        )
        return torch.linalg.cholesky(C + ridge * identity), ridge

    def projector(
        self, layer: int, threshold: float | None = None, share: float | None = None
    ) -> Solver:
        """x (d_mlp, ...) -> P x, P the orthogonal projector onto the null space of C.

        The null space: the eigenvectors of C with small eigenvalues. They are computed once, in
        float64, and the fewer of the two sides are kept: P x = U_0 U_0^T x = x - U_1 U_1^T x.
        threshold: eigenvalues below it are small; in squared units of activations, so it fits one
        model.   share: instead, as many eigenvectors as this share of all d_mlp, those with the
        smallest eigenvalues.
        Raises ValueError unless one of the two is given, if either is out of range, if no direction
        is in the null space, or, by a threshold, all are; for a layer that is not there, a moment
        that is not finite.
        Source: AlphaEdit Section 3.2.
        """
        if (threshold is None) == (share is None):
            raise ValueError(
                f"threshold {threshold} and share {share} of the null space: give one of the two"
            )
        if not (threshold is None or threshold > 0) or not (share is None or 0 < share <= 1):
            raise ValueError(
                f"null space: threshold {threshold} must be positive, "
                f"share {share} above 0 and at most 1"
            )
        key = layer, threshold, share
        if key not in self._bases:
            self._bases[key] = _null_space(self[layer], *key)
        basis, inside = self._bases[key]

        def project(x: Float[Tensor, "d_mlp ..."]) -> Float64[Tensor, "d_mlp ..."]:
            x = x.to(basis)
            part = basis @ (basis.T @ x)
            return part if inside else x - part

        return project


def _null_space(
    C: Float[Tensor, "d_mlp d_mlp"], layer: int, threshold: float | None, share: float | None
) -> tuple[Float64[Tensor, "d_mlp directions"], bool]:
    """The small eigenvectors of C (True) or, if they are fewer, the large ones (False)."""
    if not C.isfinite().all():
        raise ValueError(f"the second moment of layer {layer} is not finite")
    values, vectors = torch.linalg.eigh(C.double())
    if share is not None:
        small, rule = round(share * len(C)), f"share {share} of {len(C)}"
    else:
        small, rule = int((values < threshold).sum()), f"threshold {threshold}"
    if not small or (share is None and small == len(C)):
        raise ValueError(
            f"{rule} puts {small} of the {len(C)} directions of layer {layer} into the null space; "
            f"its eigenvalues go from {values[0]:.3g} to {values[-1]:.3g}, "
            f"their median is {values.median():.3g}"
        )
    inside = 2 * small <= len(C)
    return (vectors[:, :small] if inside else vectors[:, small:]).clone(), inside


def second_moments(
    lm: LM,
    texts: Sequence[str],
    layers: Sequence[int],
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
    budget: int = 4096,
    attn: Sequence[int] = (),
) -> Moments:
    """Second moments of the keys of ``layers`` over all tokens of ``texts``.

    In one pass, and another one for attention; layers that are in the cache are read.
    attn: layers whose attention's output projections are asked for too (``Moments.attn``).
    texts: cut to the model's longest input.   cache_dir: None takes the user's cache folder.
    progress: called with (texts done, texts).   budget: tokens in one forward.
    Returns: ``Moments``; entries in squared units of FFN activations.
    Raises: ValueError for no text, an empty text, or a layer that does not exist.
    """
    layers = lm.layers(layers)
    if not len(texts):
        raise ValueError("no text given; second moments need at least one")
    if empty := [i for i, text in enumerate(texts) if not text]:
        raise ValueError(f"text {empty[0]} is empty")
    moments = _of_part(lm, texts, layers, "mlp", cache_dir, progress, budget)
    if not len(attn):
        return moments
    of_attn = _of_part(lm, texts, lm.layers(attn), "attn", cache_dir, progress, budget)
    return replace(moments, attn=of_attn)


def _of_part(
    lm: LM,
    texts: Sequence[str],
    layers: Sequence[int],
    part: Part,
    cache_dir: str | Path | None,
    progress: Callable[[int, int], object] | None,
    budget: int,
) -> Moments:
    """Second moments of what the last matrices of a part read."""
    folder = Path(cache_dir) if cache_dir is not None else user_cache_path("acelib") / "moments"
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    stem = f"{lm.fingerprint}-{digest}-{str(lm.dtype).removeprefix('torch.')}"
    kind, suffix = ("key", "") if part == "mlp" else ("heads", "-attn")
    paths = {layer: folder / f"{stem}-{layer}{suffix}.safetensors" for layer in layers}
    cached = {layer: _cached(path, lm.width(part)) for layer, path in paths.items()}
    moments = {layer: found for layer, found in cached.items() if found is not None}
    missing = [layer for layer in layers if layer not in moments]
    if missing:
        sums, count = _accumulate(lm, texts, missing, kind, progress, budget)
        for layer in missing:
            moments[layer] = sums[layer] / count, count
            save_tensors(paths[layer], {"moment": moments[layer][0]}, {"tokens": count})
    return Moments(
        {layer: moments[layer][0].to(lm.device) for layer in layers},
        moments[layers[0]][1],
        lm.fingerprint,
    )


def _cached(path: Path, size: int) -> tuple[Float64[Tensor, "d_mlp d_mlp"], int] | None:
    """The moment of ``path`` and its tokens; None for no file or, with a warning, a damaged one."""
    if not path.exists():
        return None
    try:
        tensors, meta = load_tensors(path)
        moment, count = tensors["moment"], meta["tokens"]
        if moment.shape != (size, size) or moment.dtype != torch.float64:
            raise ValueError(f"it is {tuple(moment.shape)} of {moment.dtype}")
        if type(count) is not int or count < 1:
            raise ValueError(f"its number of tokens is {quoted(count)}")
    except (KeyError, TypeError, ValueError) as err:
        warnings.warn(f"{path}: no second moment ({err}); it is computed again", stacklevel=3)
        return None
    return moment, count


@torch.no_grad()
def _accumulate(
    lm: LM,
    texts: Sequence[str],
    layers: Sequence[int],
    kind: str,
    progress: Callable[[int, int], object] | None,
    budget: int,
) -> tuple[dict[int, Float64[Tensor, "d_mlp d_mlp"]], int]:
    """The sum over all tokens of k k^T, k the state ``kind``, by layer, and how many tokens there
    are.
    """
    longest = getattr(lm.model.config, "max_position_embeddings", budget)
    rows = sorted(
        (lm.tokenizer(text)["input_ids"][:longest] for text in texts), key=len, reverse=True
    )
    part, mask = lm.between(0, max(layers)), torch.empty(0)
    sums: dict[int, Float64[Tensor, "d_mlp d_mlp"]] = {}

    def tally(layer: int) -> Callable[[State], None]:
        def add(key: State) -> None:
            keys = key[mask.bool()].double()  # the mask of the batch now running
            sums[layer] = keys.T @ keys if layer not in sums else sums[layer].addmm_(keys.T, keys)

        return add

    done = count = 0
    with replaced(lm, {Site(kind, layer): tally(layer) for layer in layers}):  # or only looked at
        while done < len(rows):
            # 1. As many texts as the budget of tokens allows; the longest come first.
            step = max(1, min(budget // len(rows[done]), len(rows) - done))
            ids, mask = lm.pad(rows[done : done + step])
            # 2. One forward; on the way every layer adds its keys, without padding, to its sum.
            part(input_ids=ids, attention_mask=mask, use_cache=False)
            # 3. The mean is over tokens: count them.
            done, count = done + step, count + int(mask.sum())
            if progress:
                progress(done, len(rows))
    return sums, count
