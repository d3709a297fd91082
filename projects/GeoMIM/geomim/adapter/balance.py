"""Class-balanced sampling, for every host whose own divides by the zero share of a class that its data lack."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Sequence


def class_balanced(
    classes_of: Iterable[Iterable[int]], names: Sequence[str], choice: Callable[[List[int], int], Iterable[Any]]
) -> List[int]:
    """Indices of samples, of every class that occurs as many as of the others; where all occur, the hosts' own draws.

    Args:
        classes_of: each sample's classes, -1 for things of no class.
        names: of the classes.
        choice: draws so many of the given indices, with repetition, such as ``numpy.random.choice``.

    Raises:
        ValueError: no sample has any of the classes.

    Source: CBGS (arXiv 1908.09492), in the arithmetic of mmdet3d's ``CBGSDataset``.
    """
    holders: Dict[int, List[int]] = {label: [] for label in range(len(names))}
    samples = 0
    for index, labels in enumerate(classes_of):
        samples += 1
        for label in labels:
            if label != -1:
                holders[label].append(index)
    present = [indices for indices in holders.values() if indices]
    if not present:
        raise ValueError(
            f'class-balanced sampling: none of the {samples} samples has a box of {list(names)}; train on the dataset itself'
        )
    total, share = sum(map(len, present)), 1.0 / len(names)
    counts = [int(len(indices) * (share / (len(indices) / total))) for indices in present]
    return [int(index) for indices, count in zip(present, counts) for index in choice(indices, max(1, count))]
