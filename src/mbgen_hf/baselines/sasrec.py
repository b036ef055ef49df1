"""SASRec: a plain next-item Transformer over whole items, with full softmax (Kang and McAuley 2018).

The floor a generative model has to reach on items the user has not touched: one embedding per item, no item codes, no
behaviors. Trained with the cross-entropy over the whole catalog, which matters (MBGen section 4.2.1).
"""

from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from mbgen_hf.baselines.baseline import Baseline, check_length
from mbgen_hf.baselines.baseline import training_mask as check_training_end
from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import EvaluationCases
from mbgen_hf.evaluation.protocols import training_end as leave_one_out_training_end


class SASRecNetwork(nn.Module):
    """A causal Transformer over item embeddings; logits are products with the same embeddings.

    Args:
        num_items: catalog size; index 0 of the table is padding, item i is at i + 1.
        max_history: longest input.
        initial_std: standard deviation of the item embeddings before training; `dim ** -0.5` by default.
    """

    def __init__(
        self,
        num_items: int,
        max_history: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        initial_std: float | None = None,
    ):
        super().__init__()
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(max_history, dim)
        nn.init.normal_(self.items.weight, std=dim**-0.5 if initial_std is None else initial_std)
        nn.init.normal_(self.positions.weight, std=dim**-0.5)
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """States `(batch_size, seq_len, dim)` of rows `(batch_size, seq_len)`, padded with 0 on the right."""
        states = self.items(items) + self.positions(torch.arange(items.shape[1], device=items.device))
        mask = nn.Transformer.generate_square_subsequent_mask(items.shape[1], device=items.device)
        return self.encoder(self.dropout(states), mask=mask, is_causal=True)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., num_items)` scores of every item."""
        return states @ self.items.weight[1:].T

    def loss(self, states: torch.Tensor, targets: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy of targets `(num_states,)` against all items, or against `(num_others,)` of them."""
        if others is None:
            return F.cross_entropy(self.logits(states), targets)
        own = (states * self.items(targets + 1)).sum(dim=-1, keepdim=True)
        rest = states @ self.items(others + 1).T
        rest = rest.masked_fill(others == targets[:, None], -torch.inf)
        return F.cross_entropy(torch.cat([own, rest], dim=1), torch.zeros_like(targets))


class SASRecBaseline(Baseline):
    """Items by the log-probability of being next, whatever behavior is asked.

    Args:
        max_history: longest history read, in interactions.
        dim, num_layers, num_heads, dropout: the network.
        num_epochs: passes over the users.
        batch_size: users in a batch.
        learning_rate, weight_decay: of AdamW; the rate decays to zero along a cosine.
        seed: of weights, order and dropout.
        device: where it runs; a GPU if there is one by default.
        progress: show a bar over the passes.
        initial_std: of the item embeddings; a small one leaves little noise in those of rare items.
        num_sampled: train against so many random items, drawn anew for each batch, instead of the whole catalog,
            which costs accuracy but makes training on large catalogs affordable.
    """

    name = "sasrec"

    def __init__(
        self,
        max_history: int = 50,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.3,
        num_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        seed: int = 0,
        device: str | None = None,
        progress: bool = False,
        initial_std: float | None = None,
        num_sampled: int | None = None,
    ) -> None:
        self.max_history, self.seed = max_history, seed
        self.num_epochs, self.batch_size = num_epochs, batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "dropout": dropout}
        self.sizes["initial_std"] = initial_std
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.progress, self.num_sampled = progress, num_sampled
        self.network: SASRecNetwork | None = None

    def fit(self, table: SequenceTable, training_end: np.ndarray | None = None) -> Self:
        check_training_end(table, training_end)
        ends = leave_one_out_training_end(table) if training_end is None else np.asarray(training_end)
        # One more than a history: every interaction but the first of a row is predicted from those before it.
        starts = np.maximum(table.offsets[:-1], ends - self.max_history - 1)
        users = np.flatnonzero(ends - starts >= 2)
        with torch.random.fork_rng(devices=[self.device] if self.device != "cpu" else []):
            torch.manual_seed(self.seed)
            self.network = SASRecNetwork(table.num_items, self.max_history, **self.sizes).to(self.device)
            self._train(table, starts[users], ends[users])
        self.network.eval()
        return self

    def _train(self, table: SequenceTable, starts: np.ndarray, ends: np.ndarray) -> None:
        rng = np.random.default_rng(self.seed)
        steps = self.num_epochs * -(-len(starts) // self.batch_size)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        self.network.train()
        for _ in tqdm(range(self.num_epochs), desc="SASRec", disable=not self.progress, leave=False):
            order = rng.permutation(len(starts))
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                items = self._rows(table, starts[rows], ends[rows])
                states, targets = self.network(items[:, :-1]), items[:, 1:]
                counted = targets > 0
                others = None
                if self.num_sampled is not None:
                    others = torch.from_numpy(rng.integers(table.num_items, size=self.num_sampled)).to(self.device)
                loss = self.network.loss(states[counted], targets[counted] - 1, others)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def _rows(self, table: SequenceTable, starts: np.ndarray, ends: np.ndarray) -> torch.Tensor:
        """Items of slices, plus one, padded with 0 on the right: `(batch_size, longest)`."""
        rows, positions = flat_ranges(starts, ends)
        filled = np.zeros((len(starts), max(int((ends - starts).max(initial=0)), 1)), dtype=np.int64)
        filled[rows, positions - starts[rows]] = table.items[positions].astype(np.int64) + 1
        return torch.from_numpy(filled).to(self.device)

    def item_embeddings(self) -> np.ndarray:
        """`(num_items, dim)` embeddings that training has left, by catalog index.

        Raises:
            ValueError: called before `fit`.
        """
        if self.network is None:
            raise ValueError("`item_embeddings`: expected a fitted baseline, found none; call `fit(table)` first")
        return self.network.items.weight[1:].detach().cpu().numpy().copy()

    @torch.no_grad()
    def recommend(
        self, table: SequenceTable, cases: EvaluationCases, k: int, behavior: int | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        check_length(k)
        if self.network is None or self.network.items.num_embeddings != table.num_items + 1:
            raise ValueError(
                f"`table`: expected a baseline fitted on a table of {table.num_items} items, found none or another; "
                "call `fit(table)` first"
            )
        found = np.full((len(cases), k), -1, dtype=np.int32), np.full((len(cases), k), -np.inf)
        starts = np.maximum(cases.history_start, cases.history_end - self.max_history)
        width = min(k, table.num_items)
        for first in range(0, len(cases), 512):
            chunk = slice(first, first + 512)
            items = self._rows(table, starts[chunk], cases.history_end[chunk])
            last = (items > 0).sum(dim=1).sub(1).clamp(min=0)
            states = self.network(items)[torch.arange(len(items), device=self.device), last]
            best = self.network.logits(states).log_softmax(-1).topk(width)
            for target, values in zip(found, (best.indices, best.values), strict=True):
                target[chunk, :width] = values.cpu().numpy()
        return found

    def recommend_pairs(
        self, table: SequenceTable, cases: EvaluationCases, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Refused: the network knows no behaviors."""
        raise ValueError(
            "`recommend_pairs`: expected a baseline that predicts behaviors, found sasrec, which has none"
        )


__all__ = ["SASRecBaseline", "SASRecNetwork"]
