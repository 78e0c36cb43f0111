"""How alike the rows of two versions are that read the same texts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.align import about_means, procrustes

Floats = NDArray[np.float64]


def linear_cka(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Linear centred kernel alignment (Kornblith et al. 2019, section 3), for many sets of weights, [B].

    Args:
        a: Rows of one version, [N, H].
        b: Rows of another, which may be of another width, [N, H'].
        weights: Of the rows, [B, N].
    """
    found = []
    for each in weights:
        share = each / each.sum()
        left, right = ((rows - share @ rows) * np.sqrt(share)[:, None] for rows in (a, b))
        cross, own_left, own_right = (x.T @ y for x, y in ((left, right), (left, left), (right, right)))
        found.append((cross**2).sum() / (np.linalg.norm(own_left) * np.linalg.norm(own_right)))
    return np.array(found)


def map_correlation(a: Floats, b: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Representational similarity of the emotion map (Kriegeskorte et al. 2008), for many sets of weights, [B].

    Spearman correlation, over pairs of emotions, of the cosines between their mean rows.

    Args:
        a: Rows of texts by one version, [N, H].
        b: Rows by another, [N, H'].
        truth: Whether a text is of an emotion, [N, E].
        weights: Of the rows, [B, N].
    """
    found = []
    for each in weights:
        left, right = (_cosines(rows, truth, each) for rows in (a, b))
        held = np.isfinite(left) & np.isfinite(right)
        first, second = (pairs[held].argsort().argsort().astype(np.float64) for pairs in (left, right))
        found.append(float(np.corrcoef(first, second)[0, 1]))
    return np.array(found)


def _cosines(rows: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Cosine of every two emotions' mean rows about their common mean; NaN for those no text is drawn of."""
    member = truth * weights[:, None]
    with np.errstate(invalid="ignore"):
        means = member.T @ rows / member.sum(axis=0)[:, None]
        means -= np.nanmean(means, axis=0)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    pairs: Floats = (means @ means.T)[np.triu_indices(len(means), 1)]
    return pairs


def aligned_cosines(
    old: Floats, new: Floats, old_directions: Floats, new_directions: Floats, groups: NDArray[np.int64]
) -> Floats:
    """Cosine of directions of two versions once the new one is turned to the old, mean over layers, [P].

    Args:
        old: Rows of the old version, [N, L, H].
        new: Rows of the new version, [N, L, H].
        old_directions: Unit directions, [L, P, H].
        new_directions: The same of the new version.
        groups: Rows of each are centred on their own mean, [N].
    """
    turned = [
        new_directions[layer] @ procrustes(about_means(new[:, layer], groups), about_means(old[:, layer], groups))
        for layer in range(old.shape[1])
    ]
    return cosines(old_directions, np.stack(turned))


def cosines(a: Floats, b: Floats) -> Floats:
    """Cosine of unit directions, [L, P, H] each, mean over layers, [P]."""
    found: Floats = np.einsum("lph,lph->lp", a, b).mean(axis=0)
    return found
