"""Quantised auto-encoder: item features to a latent vector, to its nearest codebook entries, and back.

With one codebook it is what MBGen derives its first digit from (section 3.2); with several, each on what the ones
before leave over, it is an RQ-VAE. Codebooks start at k-means centres of the encoder's outputs and follow running
averages of the outputs assigned to them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from mbgen_hf.item_ids.grouped_kmeans import grouped_kmeans


def feed_forward(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class MovingCodebook(nn.Module):
    """A codebook held by running averages instead of gradients (Razavi et al. 2019).

    Args:
        size: number of codes.
        dim: latent width.
        decay: weight of the past in the averages.
    """

    def __init__(self, size: int, dim: int, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.zeros(size, dim))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))

    def start(self, vectors: torch.Tensor, seed: int) -> None:
        """Put the codes on k-means centres; counts and sums are those of a batch in the same proportions."""
        clusters = grouped_kmeans(vectors, vectors.new_zeros(len(vectors), dtype=torch.long), 1, len(self.codes), seed)
        counts = torch.bincount(clusters.labels, minlength=len(self.codes)).to(vectors.dtype)
        # Fewer distinct vectors than codes: the codes that are left repeat others and stay unused.
        centers = clusters.centers[0]
        missing = centers.isinf().any(dim=1)
        centers[missing] = centers[~missing][0] + 1e3 * (1 + centers[~missing].abs().max())
        self.codes.copy_(centers)
        self.counts.copy_(counts)
        self.sums.copy_(centers * counts[:, None])

    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """`(num_vectors,)` number of the nearest code."""
        scores = torch.addmm(self.codes.square().sum(dim=1), vectors, self.codes.T, alpha=-2)
        return scores.argmin(dim=1)

    @torch.no_grad()
    def follow(self, vectors: torch.Tensor, labels: torch.Tensor) -> None:
        """Move the averages towards a batch; codes that hardly anything has used for long stay where they are."""
        members = F.one_hot(labels, len(self.codes)).to(vectors.dtype)
        self.counts.lerp_(members.sum(dim=0), 1 - self.decay)
        self.sums.lerp_(members.T @ vectors, 1 - self.decay)
        alive = self.counts > 1e-4
        self.codes[alive] = self.sums[alive] / self.counts[alive, None]

    @torch.no_grad()
    def revive(self, vectors: torch.Tensor, generator: torch.Generator, share: float = 0.02) -> None:
        """Move codes used less than `share` of their fair part onto random vectors, so that every code is used."""
        idle = (self.counts < share * self.counts.mean()).nonzero()[:, 0]
        chosen = torch.randperm(len(vectors), generator=generator)[: len(idle)]
        idle = idle[: len(chosen)]
        self.codes[idle] = vectors[chosen]
        self.counts[idle] = self.counts.mean()
        self.sums[idle] = self.codes[idle] * self.counts[idle, None]


class QuantizedAutoEncoder(nn.Module):
    """Encoder, codebooks and decoder.

    Args:
        num_features: width of the item features.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        latent_dim: width of latent vectors and codes.
        code_sizes: codes of each level.
    """

    def __init__(self, num_features: int, hidden: Sequence[int], latent_dim: int, code_sizes: Sequence[int]):
        super().__init__()
        self.encoder = feed_forward([num_features, *hidden, latent_dim])
        self.decoder = feed_forward([latent_dim, *reversed(hidden), num_features])
        self.codebooks = nn.ModuleList(MovingCodebook(size, latent_dim) for size in code_sizes)

    @torch.no_grad()
    def start_codebooks(self, features: torch.Tensor, seed: int) -> None:
        """k-means on the encoder's outputs, then on what each level leaves over."""
        rest = self.encoder(features)
        for level, codebook in enumerate(self.codebooks):
            codebook.start(rest, seed + level)
            rest = rest - codebook.codes[codebook.nearest(rest)]

    def loss(self, features: torch.Tensor, beta: float, follow: bool = False) -> torch.Tensor:
        """`L_rec + beta * L_quan` of MBGen section 3.2, squared norms averaged over the batch.

        Args:
            features: `(batch_size, num_features)` standardised features.
            beta: weight of the distance between latent vectors and their codes, summed over levels.
            follow: let the codebooks follow this batch.
        """
        latent = self.encoder(features)
        rest, commitment = latent, latent.new_zeros(())
        for codebook in self.codebooks:
            labels = codebook.nearest(rest.detach())
            # A copy: `follow` changes the codes that the backward pass of the distance needs.
            chosen = codebook.codes[labels].clone()
            commitment = commitment + (rest - chosen).square().sum(dim=1).mean()
            if follow:
                codebook.follow(rest.detach(), labels)
            rest = rest - chosen
        quantized = latent + (-rest).detach()
        reconstruction = (self.decoder(quantized) - features).square().sum(dim=1).mean()
        return reconstruction + beta * commitment


def check_training(max_epochs: int = 1, latent_dim: int = 1, beta: float = 0.0, seed: int = 0, **others) -> None:
    """Check what `train_autoencoder` takes, before anything is learned; raises `ValueError`."""
    for name, value in (("max_epochs", max_epochs), ("latent_dim", latent_dim)):
        if value < 1:
            raise ValueError(f"`{name}`: expected at least 1, found {value}")
    for name, value in (("beta", beta), ("seed", seed)):
        if not value >= 0:
            raise ValueError(f"`{name}`: expected 0 or more, found {value}")


def train_autoencoder(
    features: torch.Tensor,
    hidden: Sequence[int],
    latent_dim: int,
    code_sizes: Sequence[int],
    beta: float = 0.25,
    learning_rate: float = 3e-3,
    batch_size: int | None = None,
    max_epochs: int = 300,
    patience: int = 20,
    validation_share: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> tuple[QuantizedAutoEncoder, dict[str, float]]:
    """Train until the loss on held-out items stops falling, and keep the best state.

    Args:
        features: `(num_items, num_features)` standardised features, on the device to train on.
        hidden, latent_dim, code_sizes: see `QuantizedAutoEncoder`.
        beta: weight of the quantisation loss (the paper: 0.25; the released code: 0.05).
        learning_rate: of Adagrad.
        batch_size: items in a batch; by default a fifth of the items, between 32 and 1024.
        max_epochs: cap on the passes over the items.
        patience: stop after so many passes without an improvement of at least one in a thousand.
        validation_share: share of the items held out; none are if that is less than one item.
        seed: of weights, order and codebooks.
        progress: show a bar over the epochs.

    Raises:
        ValueError: a count below 1, or a negative weight.

    Returns:
        The network, and `{"epochs", "loss", "validation_loss"}` of the state that was kept.
    """
    check_training(max_epochs=max_epochs, latent_dim=latent_dim, beta=beta, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator)
    held_out = int(validation_share * len(features))
    validation, training = features[order[:held_out]], order[held_out:]
    batch_size = batch_size or min(max(len(training) // 5, 32), 1024)
    devices = [features.device] if features.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        network = QuantizedAutoEncoder(features.shape[1], hidden, latent_dim, code_sizes).to(features.device)
    network.start_codebooks(features[training[: 64 * sum(code_sizes)]], seed)
    optimizer = torch.optim.Adagrad(network.parameters(), lr=learning_rate)
    best, kept, waited = float("inf"), None, 0
    with tqdm(total=max_epochs, desc="quantised auto-encoder", disable=not progress, leave=False) as bar:
        for epoch in range(1, max_epochs + 1):
            loss = _pass(network, features, training, optimizer, beta, batch_size, generator)
            with torch.no_grad():
                score = network.loss(validation, beta).item() if held_out else loss
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{score:.3f}", refresh=False)
            bar.update()
            waited = 0 if score < best * (1 - 1e-3) else waited + 1
            if score < best:
                best, report = score, {"epochs": epoch, "loss": loss, "validation_loss": score}
                kept = {name: value.clone() for name, value in network.state_dict().items()}
            if waited >= patience:
                break
    if kept is None:
        raise ValueError(
            f"`features`: expected a finite loss, found {score} after {epoch} passes; lower `learning_rate`"
        )
    network.load_state_dict(kept)
    return network.eval(), report


def _pass(
    network: QuantizedAutoEncoder,
    features: torch.Tensor,
    items: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    beta: float,
    batch_size: int,
    generator: torch.Generator,
) -> float:
    """One pass over some items in random order; returns the mean loss of its batches."""
    total, order = 0.0, items[torch.randperm(len(items), generator=generator)].to(features.device)
    for rows in order.split(batch_size):
        loss = network.loss(features[rows], beta, follow=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    with torch.no_grad():
        rest = network.encoder(features[order[: 16 * batch_size]])
        for codebook in network.codebooks:
            codebook.revive(rest, generator)
            rest = rest - codebook.codes[codebook.nearest(rest)]
    return total / len(items)


__all__ = ["MovingCodebook", "QuantizedAutoEncoder", "check_training", "feed_forward", "train_autoencoder"]
