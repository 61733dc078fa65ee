"""Does the embedding carry the speech rate at all? A ridge regression says, beside predicting the mean.

One pass has made the normal equations of the training split (moments.py). Their eigenvectors solve them for every strength of the
penalty at once; that which errs least on the development split is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cpstream_client.contract.figures import AlphaTried, Baseline, Decile, Errors

from ..snapshot.store import Split
from .distributions import Doubles
from .moments import Moments
from .reading import pieces

STRENGTHS = tuple(10.0**exponent for exponent in range(-6, 4))
"""Of the penalty, in units of the mean eigenvalue: whatever the scale of the embeddings, too little and too much are among them."""


@dataclass(frozen=True, eq=False)
class Fits:
    """Ridge regressions of one split. weights (D, A), offsets (A,), one column a penalty; mean: of the rates."""

    fitted_on: str
    alphas: tuple[float, ...]
    weights: Doubles
    offsets: Doubles
    mean: float

    def predictions(self, split: Split, done: Callable[[int], None]) -> Doubles:
        """(N, A). Raises OSError."""
        found = np.empty((len(split.cps), len(self.alphas)))
        for low, rows in pieces(split):
            found[low : low + len(rows)] = rows.astype(np.float64) @ self.weights + self.offsets
            done(len(rows))
        return found


def fits(name: str, found: Moments) -> tuple[Fits, Doubles]:
    """The regressions, and the eigenvalues of the centred Gram matrix, ascending. Uses that matrix up."""
    eigenvalues, vectors = np.linalg.eigh(found.centred_gram())
    eigenvalues = np.maximum(eigenvalues, 0)
    scale = float(eigenvalues.mean()) or 1.0
    alphas = tuple(scale * strength for strength in STRENGTHS)
    turned = vectors.T @ found.cross  # the mean of the rates is taken off already, and so the centre does not matter
    weights = vectors @ (turned[:, None] / (eigenvalues[:, None] + np.array(alphas)))
    return Fits(name, alphas, weights, found.mean_cps - found.mean @ weights, found.mean_cps), eigenvalues


@dataclass(frozen=True, eq=False)
class Chosen:
    """Of the fits that which the development split has chosen, as one fit, and how all of them did there."""

    fit: Fits
    chosen_on: str
    tried: tuple[AlphaTried, ...]


def choose(every: Fits, dev: Split, done: Callable[[int], None]) -> Chosen:
    """The one with the least squared error on the development split; of equal ones the strongest penalty."""
    errors = every.predictions(dev, done) - dev.cps.astype(np.float64)[:, None]
    squares = (errors**2).mean(axis=0)
    best = len(squares) - 1 - int(squares[::-1].argmin())
    tried = tuple(
        AlphaTried(alpha=alpha, mae=float(mae), rmse=float(np.sqrt(square)))
        for alpha, mae, square in zip(every.alphas, np.abs(errors).mean(axis=0), squares, strict=True)
    )
    one = slice(best, best + 1)
    fit = Fits(every.fitted_on, every.alphas[one], every.weights[:, one], every.offsets[one], every.mean)
    return Chosen(fit, dev.name, tried)


def judge(chosen: Chosen, split: Split, done: Callable[[int], None]) -> Baseline:
    """What the chosen regression predicts of a split."""
    cps = split.cps.astype(np.float64)
    predicted = chosen.fit.predictions(split, done)[:, 0]
    return Baseline(
        fitted_on=chosen.fit.fitted_on,
        chosen_on=chosen.chosen_on,
        alpha=chosen.fit.alphas[0],
        alphas=chosen.tried,
        ridge=errors(cps, predicted),
        mean=errors(cps, np.full(len(cps), chosen.fit.mean)),
        deciles=deciles(cps, predicted),
    )


def errors(cps: Doubles, predicted: Doubles) -> Errors:
    """r2 is None where the rates do not vary."""
    total = ((cps - cps.mean()) ** 2).sum()
    missed = ((cps - predicted) ** 2).sum()
    r2 = float(1 - missed / total) if total > 0 and cps.min() < cps.max() else None
    return Errors(r2=r2, mae=float(np.abs(cps - predicted).mean()))


def deciles(cps: Doubles, predicted: Doubles) -> tuple[Decile, ...]:
    """Errors by tenths of the rates. Equal rates are of one decile: where many are, there are fewer than ten."""
    edges = np.unique(np.quantile(cps, np.linspace(0, 1, 11)))
    of = np.clip(np.searchsorted(edges, cps, "right") - 1, 0, max(len(edges) - 2, 0))
    missed = predicted - cps
    found: Sequence[Decile] = [
        Decile(
            low=float(edges[at]),
            high=float(edges[min(at + 1, len(edges) - 1)]),
            count=int(mask.sum()),
            mae=float(np.abs(missed[mask]).mean()),
            bias=float(missed[mask].mean()),
        )
        for at in range(max(len(edges) - 1, 1))
        if (mask := of == at).any()
    ]
    return tuple(found)
