"""A simulated shop: a multi-behavior log of known structure, so that a ranking can be compared with the best one.

Shoppers click, cart and purchase. Every interaction is drawn from three habits, and nothing else:

* *checkout*: what was put in the cart one to three steps ago is bought;
* *follow*: whatever was touched last leads to the one item that goes with it (its complement);
* *browse*: an item from a department the shopper likes, popular items first.

Checkouts are what a recency baseline finds, browsing is what a popularity baseline finds, and the complements, new to
the shopper most of the time, have to be learned from the log.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable


DEPARTMENTS = (
    "mug",
    "tea",
    "kettle",
    "apron",
    "cookbook",
    "spice",
    "basket",
    "blanket",
    "lantern",
    "tent",
    "backpack",
    "boots",
)
SHOP_SCHEMA = BehaviorSchema(names=("click", "cart", "purchase"), levels=(0, 1, 2), target="purchase")
CLICK, CART, PURCHASE = range(3)

CART_MEMORY = 3
"""A cart is open for this many interactions, unless the item is bought before."""

_OPENING_TIME = 1_700_000_000
_SAME_VISIT_SECONDS = (20, 900)
_NEXT_VISIT_SECONDS = (6 * 3600, 4 * 86400)


class _Cases(Protocol):
    """The part of `mbgen_hf.evaluation.protocols.EvaluationCases` that the oracle reads."""

    users: np.ndarray
    history_start: np.ndarray
    history_end: np.ndarray
    behavior: np.ndarray


@dataclass(frozen=True)
class SimulatedShop:
    """A log together with everything that produced it.

    Item indices in `complements`, `departments`, `popularity` and in the oracle count along `item_ids`, which is
    ascending like a sequence table's catalog; the two agree whenever every item occurs in the log
    (guaranteed for `num_users >= num_items`).

    Args:
        log: columns `user_id` (`Int64`), `item_id` (`String`), `behavior` (`Int8` class label), `timestamp` (`Int64`
            seconds), in order of user and time.
        item_ids: `(num_items,)` raw item ids such as `"mug-017"`, ascending.
        complements: `(num_items,)` index of the item that goes with each item; one cycle through the whole catalog
            that changes department at every step.
        departments: `(num_items,)` index into `department_names`.
        department_names: the departments in catalog order.
        popularity: `(num_items,)` share of each item within its department's browsing.
        tastes: `(num_users, num_departments)` each shopper's browsing shares.
        behavior_shares: `(3,)` probabilities of click, cart and purchase in an interaction that is no checkout.
        checkout: probability that an interaction is a checkout while a cart is open.
        follow: probability that an interaction that is no checkout goes to the complement.
        schema: the behaviors.
    """

    log: pl.DataFrame
    item_ids: np.ndarray
    complements: np.ndarray
    departments: np.ndarray
    department_names: tuple[str, ...]
    popularity: np.ndarray
    tastes: np.ndarray
    behavior_shares: np.ndarray
    checkout: float
    follow: float
    schema: BehaviorSchema = field(default=SHOP_SCHEMA)

    @property
    def num_users(self) -> int:
        return len(self.tastes)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def table(self) -> SequenceTable:
        """The log as a sequence table."""
        return SequenceTable.from_log(self.log, self.schema)

    def named_log(self) -> pl.DataFrame:
        """The log with behavior names in place of class labels: what a raw log file holds."""
        names = pl.Series(self.schema.names)
        return self.log.with_columns(behavior=names.gather(self.log["behavior"].cast(pl.UInt32)))

    def write_csv(self, path: str | Path) -> None:
        """Write `user_id,item_id,behavior,timestamp` with behavior names."""
        self.named_log().write_csv(path)

    def oracle_probabilities(self, table: SequenceTable, cases: _Cases) -> np.ndarray:
        """True probability of every (behavior, item) pair as the next interaction of each case.

        Exact, given the shop's own parameters and the shopper's taste: no model can rank better on average.

        Args:
            table: this shop's sequence table, or one cut from it with the same raw ids.
            cases: evaluation cases over `table`; every history holds at least one interaction.

        Returns:
            `(num_cases, 3, table.num_items)` `float64`, summing to 1 over the last two axes when every item of the
            shop is in the table's catalog.

        Raises:
            ValueError: an item of `table` is not sold here, or a history is empty.
        """
        if np.any(cases.history_end <= cases.history_start):
            raise ValueError("`cases`: expected one or more interactions of history, found none; drop such cases")
        catalog = np.searchsorted(self.item_ids, table.item_ids)
        if not np.array_equal(self.item_ids[np.minimum(catalog, self.num_items - 1)], table.item_ids):
            raise ValueError("`table`: expected items of this shop only, found others; pass `shop.table()`")
        positions = cases.history_end[:, None] - np.arange(1, CART_MEMORY + 1)
        inside = positions >= cases.history_start[:, None]
        positions = np.maximum(positions, 0)
        items = np.where(inside, catalog[table.items[positions]], -1)
        behaviors = np.where(inside, table.behaviors[positions], -1)
        tastes = self.tastes[table.user_ids[cases.users].astype(np.int64)]
        return self._next_probabilities(items, behaviors, tastes)[:, :, catalog]

    def oracle_scores(self, table: SequenceTable, cases: _Cases, behavior: int | None = None) -> np.ndarray:
        """`(num_cases, table.num_items)` Bayes-optimal scores of the next item under a behavior, higher is better.

        Args:
            behavior: class label asked for; by default each case's own held-out behavior.
        """
        joint = self.oracle_probabilities(table, cases)
        asked = cases.behavior if behavior is None else np.full(len(joint), behavior)
        return joint[np.arange(len(joint)), asked]

    def _next_probabilities(self, items: np.ndarray, behaviors: np.ndarray, tastes: np.ndarray) -> np.ndarray:
        """Joint probabilities from the last `CART_MEMORY` interactions, newest first, -1 where there is none."""
        rows = np.arange(len(items))
        opened = _open_carts(items, behaviors)
        num_open = opened.sum(axis=1)
        item_shares = (1 - self.follow) * tastes[:, self.departments] * self.popularity
        item_shares[rows, self.complements[items[:, 0]]] += self.follow
        checkout = np.where(num_open > 0, self.checkout, 0.0)
        joint = (1 - checkout)[:, None, None] * self.behavior_shares[:, None] * item_shares[:, None, :]
        for age in range(CART_MEMORY):
            row = rows[opened[:, age]]
            joint[row, PURCHASE, items[row, age]] += checkout[row] / num_open[row]
        return joint


def simulate_shop(
    num_users: int = 2000,
    num_items: int = 120,
    seed: int = 0,
    *,
    min_length: int = 15,
    max_length: int = 25,
    behavior_shares: tuple[float, float, float] = (0.42, 0.25, 0.33),
    checkout: float = 0.25,
    follow: float = 0.8,
    popularity_exponent: float = 0.5,
    num_favorites: int = 2,
    favorite_share: float = 0.8,
) -> SimulatedShop:
    """Draw a shop and its log. The same arguments give the same log.

    The first item of shopper `u` comes from a shop window that goes round the catalog, so each item occurs at least
    `num_users // num_items` times: five or more for the default sizes.

    The defaults are meant for a small model trained for minutes. On the last interactions that are purchases (seed 0)
    the oracle reaches HR@10 0.94, recency 0.36 and popularity 0.10; a larger catalog takes longer to learn.

    Args:
        num_users: number of shoppers, with raw ids 0, 1, ...
        num_items: catalog size, at least one item per department (12).
        seed: seed of the only source of randomness.
        min_length: fewest interactions of a shopper.
        max_length: most interactions of a shopper.
        behavior_shares: probabilities of click, cart and purchase in an interaction that is no checkout.
        checkout: probability that an interaction buys an open cart, while there is one.
        follow: probability that an interaction that is no checkout goes to the complement of the last item.
        popularity_exponent: skew of browsing inside a department; 0 is uniform.
        num_favorites: number of departments a shopper likes.
        favorite_share: share of browsing that goes to these departments.

    Raises:
        ValueError: a size or a probability is out of range.
    """
    _check_arguments(num_users, num_items, min_length, max_length, behavior_shares, checkout, follow)
    rng = np.random.default_rng(seed)
    departments = np.sort(np.arange(num_items) % len(DEPARTMENTS))
    names = tuple(sorted(DEPARTMENTS))
    shelf = np.arange(num_items) - np.searchsorted(departments, departments)
    shop = SimulatedShop(
        log=pl.DataFrame(),
        item_ids=np.array([f"{names[d]}-{n + 1:03d}" for d, n in zip(departments, shelf, strict=True)]),
        complements=_draw_complements(departments, names, rng),
        departments=departments,
        department_names=names,
        popularity=_draw_popularity(departments, popularity_exponent, rng),
        tastes=_draw_tastes(num_users, len(names), num_favorites, favorite_share, rng),
        behavior_shares=np.array(behavior_shares),
        checkout=checkout,
        follow=follow,
    )
    lengths = rng.integers(min_length, max_length + 1, size=num_users)
    items, behaviors = _draw_interactions(shop, max_length, rng)
    timestamps = _draw_timestamps(num_users, max_length, rng)
    kept = np.arange(max_length) < lengths[:, None]
    log = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_users, dtype=np.int64), lengths),
            "item_id": shop.item_ids[items[kept]].tolist(),
            "behavior": behaviors[kept].astype(np.int8),
            "timestamp": timestamps[kept],
        }
    )
    return SimulatedShop(**{**vars(shop), "log": log})


def _check_arguments(
    num_users: int,
    num_items: int,
    min_length: int,
    max_length: int,
    behavior_shares: tuple[float, float, float],
    checkout: float,
    follow: float,
) -> None:
    if num_users < 1:
        raise ValueError(f"`num_users`: expected 1 or more, found {num_users}; ask for at least one shopper")
    if num_items < len(DEPARTMENTS):
        raise ValueError(f"`num_items`: expected {len(DEPARTMENTS)} or more, found {num_items}; fill every department")
    if not 1 <= min_length <= max_length:
        raise ValueError(
            f"`min_length`: expected between 1 and `max_length` ({max_length}), found {min_length}; widen the range"
        )
    if len(behavior_shares) != 3 or min(behavior_shares) < 0 or abs(sum(behavior_shares) - 1) > 1e-9:
        raise ValueError(
            f"`behavior_shares`: expected three probabilities that sum to 1, found {behavior_shares}; rescale them"
        )
    for name, value in (("checkout", checkout), ("follow", follow)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}`: expected a probability, found {value}; pass a number between 0 and 1")


def _draw_complements(departments: np.ndarray, names: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    """One cycle through all items that visits the departments in the order of `DEPARTMENTS`, again and again."""
    lap = np.empty(len(departments), dtype=np.int64)
    for department in range(len(names)):
        members = np.flatnonzero(departments == department)
        lap[members] = rng.permutation(len(members))
    stop = np.array([DEPARTMENTS.index(name) for name in names])[departments]
    cycle = np.lexsort((stop, lap))
    complements = np.empty_like(cycle)
    complements[cycle] = np.roll(cycle, -1)
    return complements


def _draw_popularity(departments: np.ndarray, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Zipf weights over a random order of each department's items, summing to 1 in each department."""
    popularity = np.empty(len(departments))
    for department in np.unique(departments):
        members = np.flatnonzero(departments == department)
        weights = (1.0 + rng.permutation(len(members))) ** -exponent
        popularity[members] = weights / weights.sum()
    return popularity


def _draw_tastes(
    num_users: int, num_departments: int, num_favorites: int, favorite_share: float, rng: np.random.Generator
) -> np.ndarray:
    if not 1 <= num_favorites <= num_departments:
        raise ValueError(
            f"`num_favorites`: expected between 1 and {num_departments}, found {num_favorites}; "
            "a shopper can not like more departments than there are"
        )
    if not 0 <= favorite_share <= 1:
        raise ValueError(
            f"`favorite_share`: expected a probability, found {favorite_share}; pass a number between 0 and 1"
        )
    order = rng.random((num_users, num_departments)).argsort(axis=1)
    tastes = np.full((num_users, num_departments), (1 - favorite_share) / num_departments)
    np.put_along_axis(tastes, order[:, :num_favorites], tastes[0, 0] + favorite_share / num_favorites, axis=1)
    return tastes


def _open_carts(items: np.ndarray, behaviors: np.ndarray) -> np.ndarray:
    """`(rows, CART_MEMORY)` bool: which of the last interactions, newest first, are carts not bought since."""
    opened = behaviors == CART
    for age in range(1, CART_MEMORY):
        bought_since = (behaviors[:, :age] == PURCHASE) & (items[:, :age] == items[:, age, None])
        opened[:, age] &= ~bought_since.any(axis=1)
    return opened


def _draw_interactions(shop: SimulatedShop, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`(num_users, length)` items and behaviors; the loop runs over steps, all shoppers at once."""
    rows = np.arange(shop.num_users)
    items = np.full((shop.num_users, length + CART_MEMORY), -1)
    behaviors = np.full_like(items, -1)
    window = rng.permutation(shop.num_items)
    items[:, CART_MEMORY] = window[rows % shop.num_items]
    behaviors[:, CART_MEMORY] = _draw_behaviors(shop, rng)
    for step in range(CART_MEMORY + 1, length + CART_MEMORY):
        last_items = items[:, step - 1 : step - 1 - CART_MEMORY : -1]
        opened = _open_carts(last_items, behaviors[:, step - 1 : step - 1 - CART_MEMORY : -1])
        checks_out = opened.any(axis=1) & (rng.random(shop.num_users) < shop.checkout)
        # A random key per open cart, and the smallest one wins: each is bought with the same probability.
        chosen = np.where(opened, rng.random(opened.shape), 2.0).argmin(axis=1)
        follows = rng.random(shop.num_users) < shop.follow
        browsed = _draw_browsing(shop, rng)
        items[:, step] = np.where(follows, shop.complements[last_items[:, 0]], browsed)
        items[:, step] = np.where(checks_out, last_items[rows, chosen], items[:, step])
        behaviors[:, step] = np.where(checks_out, PURCHASE, _draw_behaviors(shop, rng))
    return items[:, CART_MEMORY:], behaviors[:, CART_MEMORY:]


def _draw_behaviors(shop: SimulatedShop, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(len(shop.behavior_shares), size=shop.num_users, p=shop.behavior_shares)


def _draw_browsing(shop: SimulatedShop, rng: np.random.Generator) -> np.ndarray:
    """One browsed item per shopper: a department by taste, then an item of it by popularity."""
    shares = np.cumsum(shop.tastes, axis=1)
    department = (rng.random((shop.num_users, 1)) * shares[:, -1:] >= shares).sum(axis=1)
    # Each department's popularity sums to 1, so over the sorted catalog the running sum of department d starts at d.
    running = np.cumsum(shop.popularity)
    first = np.searchsorted(shop.departments, department)
    last = np.searchsorted(shop.departments, department, side="right") - 1
    item = np.searchsorted(running, department + rng.random(shop.num_users), side="right")
    return np.clip(item, first, last)


def _draw_timestamps(num_users: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """`(num_users, length)` seconds: visits of a few interactions minutes apart, hours or days between visits."""
    near = rng.integers(*_SAME_VISIT_SECONDS, size=(num_users, length))
    far = rng.integers(*_NEXT_VISIT_SECONDS, size=(num_users, length))
    gaps = np.where(rng.random((num_users, length)) < 0.25, far, near)
    return _OPENING_TIME + np.cumsum(gaps, axis=1, dtype=np.int64)


__all__ = ["CART_MEMORY", "DEPARTMENTS", "SHOP_SCHEMA", "SimulatedShop", "simulate_shop"]
