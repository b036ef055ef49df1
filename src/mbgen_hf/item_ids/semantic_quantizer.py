"""What turns item features into codes, once it is fitted: standardisation, encoder, codebooks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class SemanticQuantizer:
    """A fitted quantiser: each level takes the nearest entry of its codebook and hands on what is left over.

    Args:
        mean, scale: `(num_features,)` of the features it was fitted on.
        weights, biases: of the encoder's linear layers, with ReLU between them.
        codebooks: one per level: `(size, latent_dim)`, or `(first_size, size, latent_dim)` where every code of the
            first level has entries of its own; infinite rows are codes that do not exist.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    codebooks: tuple[torch.Tensor, ...]

    @property
    def num_features(self) -> int:
        return len(self.mean)

    @property
    def code_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return [codebook.shape[-2] for codebook in self.codebooks]

    @classmethod
    def from_encoder(
        cls, mean: torch.Tensor, scale: torch.Tensor, encoder: nn.Sequential, codebooks: list[torch.Tensor]
    ) -> "SemanticQuantizer":
        """Copy a trained encoder and its codebooks to the CPU."""
        linear = [layer for layer in encoder if isinstance(layer, nn.Linear)]

        def plain(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().to("cpu", torch.float32).contiguous().clone()

        return cls(
            plain(mean),
            plain(scale),
            tuple(plain(layer.weight) for layer in linear),
            tuple(plain(layer.bias) for layer in linear),
            tuple(plain(codebook) for codebook in codebooks),
        )

    def latent(self, features: np.ndarray) -> torch.Tensor:
        """`(num_items, latent_dim)` latent vectors of features.

        Raises:
            ValueError: features of another width, or values that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"`features`: expected shape (num_items, {self.num_features}) as at fitting, found {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError("`features`: expected finite values, found others")
        blocks = []
        for rows in torch.from_numpy(np.asarray(features, dtype=np.float32)).split(ROWS_AT_ONCE):
            state = (rows - self.mean) / self.scale
            for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                state = F.linear(F.relu(state) if depth else state, weight, bias)
            blocks.append(state)
        return torch.cat(blocks) if blocks else torch.empty(0, self.weights[-1].shape[0])

    def codes(self, features: np.ndarray) -> np.ndarray:
        """`(num_items, levels)` `int32` codes: the nearest entry at each level, greedily."""
        rest = self.latent(features)
        codes = torch.empty(len(rest), len(self.codebooks), dtype=torch.long)
        for rows in torch.arange(len(rest)).split(ROWS_AT_ONCE):
            for level in range(len(self.codebooks)):
                first = codes[rows, 0]
                codes[rows, level] = self._distances(rest[rows], level, first).argmin(dim=1)
                rest[rows] -= self._entries(level, first, codes[rows, level])
        return codes.int().numpy()

    def cells_by_distance(self, features: np.ndarray) -> Iterator[tuple[int, ...]]:
        """The codes of one item, then those of ever less fitting cells, the last level varying first.

        Args:
            features: `(num_features,)`.
        """
        yield from self._cells(self.latent(features[None])[0], ())

    def _cells(self, rest: torch.Tensor, before: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        level = len(before)
        if level == len(self.codebooks):
            yield before
            return
        first = torch.tensor(before[:1] or (0,))
        distances, order = self._distances(rest[None], level, first)[0].sort()
        for code in order[distances < torch.inf].tolist():
            entry = self._entries(level, first, torch.tensor([code]))[0]
            yield from self._cells(rest - entry, (*before, code))

    def _distances(self, rest: torch.Tensor, level: int, first: torch.Tensor) -> torch.Tensor:
        """`(num_items, size)` squared distances to the entries of a level, up to the same constant for a row."""
        codebook = self.codebooks[level]
        if codebook.ndim == 2:
            return torch.addmm(codebook.square().sum(dim=1), rest, codebook.T, alpha=-2)
        # Items in the order of their first code, so that each codebook is used in one product.
        order = first.argsort(stable=True)
        ends = torch.bincount(first, minlength=len(codebook)).cumsum(0).tolist()
        distances = torch.empty(len(rest), codebook.shape[1])
        for number, (start, end) in enumerate(pairwise([0, *ends])):
            if end > start:
                entries = codebook[number]
                missing = entries.isinf().any(dim=1)
                entries = torch.where(missing[:, None], 0.0, entries)
                lengths = torch.where(missing, torch.inf, entries.square().sum(dim=1))
                rows = order[start:end]
                distances[rows] = torch.addmm(lengths, rest[rows], entries.T, alpha=-2)
        return distances

    def _entries(self, level: int, first: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        codebook = self.codebooks[level]
        return codebook[codes] if codebook.ndim == 2 else codebook[first, codes]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything by name, for a safetensors file."""
        named = {"mean": self.mean, "scale": self.scale}
        for name, parts in (("weight", self.weights), ("bias", self.biases), ("codebook", self.codebooks)):
            named.update({f"{name}.{number}": part for number, part in enumerate(parts)})
        return named

    @classmethod
    def from_tensors(cls, named: dict[str, torch.Tensor]) -> "SemanticQuantizer":
        """Read what `tensors` gave."""

        def parts(name: str) -> tuple[torch.Tensor, ...]:
            count = sum(key.startswith(f"{name}.") for key in named)
            return tuple(named[f"{name}.{number}"] for number in range(count))

        return cls(named["mean"], named["scale"], parts("weight"), parts("bias"), parts("codebook"))


def standardization(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of every feature; constant features keep scale 1."""
    mean = features.mean(dim=0)
    scale = features.std(dim=0, correction=0)
    return mean, torch.where(scale > 1e-6 * (1 + mean.abs()), scale, 1.0)


__all__ = ["SemanticQuantizer", "standardization"]
