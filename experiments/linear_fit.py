"""Multinomial logistic regression on frozen features, and how well scores sort classes.

Shape legend: M cells, C features, K classes.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # of the squared weights, beside a mean over the cells; from strong to weak
ITERATIONS = 100


class LinearMap(NamedTuple):
    """From features to logits: weight (C, K) and bias (K,)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) -> (M, K)."""
        return torch.addmm(self.bias, features, self.weight)


class Standard(NamedTuple):
    """Mean (C,) and standard deviation (C,) of features; infinite for one that hardly varies, which becomes 0."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standard:
        deviation = features.std(dim=0, unbiased=False)
        varies = deviation > 1e-4 * deviation.max()
        return cls(features.mean(dim=0), torch.where(varies, deviation, torch.full_like(deviation, torch.inf)))

    def apply(self, features: Tensor) -> Tensor:
        """(M, C) with mean 0 and deviation 1."""
        return (features - self.mean) / self.deviation


def fit(features: Tensor, labels: Tensor, classes: int, penalty: float, start: Optional[LinearMap] = None) -> LinearMap:
    """The map that makes mean cross entropy + ``penalty`` / 2 * sum of squared weights least, by LBFGS on all cells at once.

    Nothing is drawn: the problem is convex, and it starts from zero weights and the classes' frequencies, or from ``start``.

    Args:
        features: (M, C), standardised.
        labels: (M,) int64 below ``classes``.
    """
    if start is None:
        frequency = torch.bincount(labels, minlength=classes).to(features) + 1
        start = LinearMap(features.new_zeros(features.shape[1], classes), (frequency / frequency.sum()).log())
    weight, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_change=1e-5, line_search_fn='strong_wolfe'
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(torch.addmm(bias, features, weight), labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return LinearMap(weight.detach(), bias.detach())


def fit_chosen(
    features: Tensor, labels: Tensor, held: Tensor, classes: int, title: str
) -> Tuple[LinearMap, Dict[str, Any]]:
    """The map of all cells, with the penalty whose map of the other cells has the least cross entropy on the ``held`` ones.

    Penalties are tried from strong to weak until the cross entropy rises. Without both kinds of cells, the one in the middle
    is taken.

    Args:
        features: (M, C), standardised.
        labels: (M,) int64.
        held: (M,) bool.

    Returns:
        The map; ``penalty``, and by each penalty tried its ``held_out_loss``.
    """
    losses: Dict[float, float] = {}
    found: Optional[LinearMap] = None  # each map starts the next one
    kept: Optional[LinearMap] = None
    if bool(held.any()) and not bool(held.all()):
        rest = (features[~held], labels[~held])
        for penalty in tqdm(PENALTIES, desc=f'{title}: penalty', mininterval=1):
            found = fit(*rest, classes, penalty, found)
            losses[penalty] = float(cross_entropy(found.logits(features[held]), labels[held]))
            if losses[penalty] > min(losses.values()):
                break
            kept = found
    best = min(losses, key=lambda penalty: losses[penalty]) if losses else PENALTIES[len(PENALTIES) // 2]
    choice = {'penalty': best, 'held_out_loss': {f'{penalty:g}': loss for penalty, loss in losses.items()}}
    return fit(features, labels, classes, best, kept), choice


def average_precision(scores: Tensor, hits: Tensor) -> float:
    """Area under precision over recall, as scikit-learn's: cells of equal score come together.

    Args:
        scores: (M,).
        hits: (M,) bool, at least one true.
    """
    order = scores.argsort(descending=True)
    ordered, right = scores[order], hits[order].double().cumsum(dim=0)
    last = torch.ones_like(hits)
    last[:-1] = ordered[1:] != ordered[:-1]
    right, seen = right[last], (torch.arange(len(scores), device=scores.device)[last] + 1).double()
    gained = torch.diff(right, prepend=right.new_zeros(1))
    return float((gained * right / seen).sum() / right[-1])


def f1(guess: Tensor, labels: Tensor, number: int) -> float:
    """2 TP / (2 TP + FP + FN) of class ``number``, 0 where it is neither there nor guessed."""
    guessed, there = guess == number, labels == number
    both = int((guessed & there).sum())
    return 2 * both / max(1, int(guessed.sum()) + int(there.sum()))


def sorting_figures(scores: Tensor, labels: Tensor, names: List[str]) -> Dict[str, Any]:
    """Average precision and F1 of each class that occurs, and their means over the objects, which is all but the last one.

    Args:
        scores: (M, K); the greatest one of a cell is its guess.
        labels: (M,) int64.
        names: of the K classes, the background last.
    """
    guess = scores.argmax(dim=1)
    there = [number for number in range(len(names)) if bool((labels == number).any())]
    precision = {names[number]: average_precision(scores[:, number], labels == number) for number in there}
    overlap = {names[number]: f1(guess, labels, number) for number in there}
    objects = [names[number] for number in there if number < len(names) - 1]
    return {
        'mean_ap': sum(precision[name] for name in objects) / max(1, len(objects)),
        'macro_f1': sum(overlap[name] for name in objects) / max(1, len(objects)),
        'ap': precision,
        'f1': overlap,
    }
