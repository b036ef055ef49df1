"""Decoding constrained to the catalog: logits processors, prompts, and `generate` for both models."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils import ModelOutput

from .item_trie import ItemTrie
from .token_space import BEHAVIOR_SLOT, BOS, PAD, TokenSpace


# Stock beam search starts all beams but the first at -1e9 and so fills up with copies once nothing else is reachable.
# No log-probability of an item comes near this.
UNREACHABLE_SCORE = -1e7


class CatalogConstraint(LogitsProcessor):
    """Lets only what leads to an item of the catalog follow: a behavior first, then codes along the trie.

    Works under stock `generate`: greedy, sampling and beam search.

    Args:
        trie: the catalog.
        token_space: the layout of ids.
        start: column of the ids at which the generated interaction begins, that is of its behavior token.
        normalize: whether each step is normalised over what may follow, so that the scores of all items (given the
            behavior) sum to 1 as probabilities; by default log-probabilities over the whole vocabulary are kept.
    """

    def __init__(self, trie: ItemTrie, token_space: TokenSpace, start: int, normalize: bool = False):
        self.trie, self.token_space, self.start, self.normalize = trie, token_space, start, normalize

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        level = input_ids.shape[1] - self.start - 1
        if level < 0:
            first, width = self.token_space.behavior_offset, len(self.token_space.behaviors)
            allowed = None
        else:
            first, width = self.token_space.code_offsets[level], self.token_space.code_sizes[level]
            allowed = self.trie.allowed(self._node(input_ids, level), level)
        kept = scores[:, first : first + width]
        if allowed is not None:
            kept = kept.masked_fill(~allowed, -torch.inf)
        if self.normalize:
            total = kept.float().logsumexp(-1, keepdim=True)
            # A dead beam has nothing to normalise over; -inf minus -inf would be NaN.
            kept = torch.where(total > -torch.inf, kept - total, kept).to(scores.dtype)
        constrained = torch.full_like(scores, -torch.inf)
        constrained[:, first : first + width] = kept
        return constrained

    def _node(self, input_ids: torch.LongTensor, depth: int) -> torch.Tensor:
        """The trie node each row has reached with its `depth` codes."""
        first = self.start + BEHAVIOR_SLOT
        return self.trie.walk(_codes(input_ids[:, first : first + depth], self.token_space))


class BehaviorConstraint(LogitsProcessor):
    """Lets only the given behaviors be generated where a behavior comes next; leaves every other step alone.

    Args:
        behaviors: names of the behaviors that may be generated.
        token_space: the layout of ids.
        start: column of the ids at which the generated interaction begins.
    """

    def __init__(self, behaviors: Sequence[str], token_space: TokenSpace, start: int):
        if not behaviors:
            raise ValueError("`behaviors`: expected at least one behavior that may be generated, found none")
        self.ids = [token_space.behavior_id(name) for name in behaviors]
        self.start = start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] != self.start:
            return scores
        constrained = torch.full_like(scores, -torch.inf)
        constrained[:, self.ids] = scores[:, self.ids]
        return constrained


def resolve_prompt(prompt, behavior, token_space: TokenSpace) -> torch.LongTensor:
    """Turn `prompt` or `behavior` into token ids, without BOS.

    Args:
        prompt: `None`, or one prompt for all rows, or a list or tensor with one prompt per row. A prompt is BOS (may
            be left out), then optionally a behavior, then optionally the first codes of an item; each as an id, a
            token or a behavior name.
        behavior: `None`, or the name of a behavior, or one name per row; short for the prompt `[BOS, behavior]`.
        token_space: the layout of ids.

    Returns:
        `torch.LongTensor` of shape `(1 or batch_size, prompt_len)`, on the CPU.

    Raises:
        ValueError: both arguments at once, unknown tokens, prompts of different lengths, or tokens out of order.
    """
    if prompt is not None and behavior is not None:
        raise ValueError("`prompt`: expected either `prompt` or `behavior`, found both")
    if behavior is not None:
        names = [behavior] if isinstance(behavior, str) else behavior
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"`behavior`: expected a name or a list of names, found {behavior!r}")
        return torch.tensor([[token_space.behavior_id(name)] for name in names], dtype=torch.long)
    if prompt is None:
        return torch.empty(1, 0, dtype=torch.long)
    rows = list(prompt.tolist() if isinstance(prompt, (torch.Tensor, np.ndarray)) else prompt)
    if not rows or not isinstance(rows[0], (list, tuple)):
        rows = [rows]
    rows = [token_space.resolve(row) for row in rows]
    rows = [row[1:] if row[:1] == [BOS] else row for row in rows]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"`prompt`: expected prompts of one length, found lengths {[len(row) for row in rows]}")
    ids = torch.tensor(rows, dtype=torch.long).view(len(rows), -1)
    if ids.shape[1] > token_space.num_code_levels:
        raise ValueError(
            f"`prompt`: expected at most a behavior and {token_space.num_code_levels - 1} codes, "
            f"found {ids.shape[1]} tokens after BOS"
        )
    expected = torch.arange(BEHAVIOR_SLOT, BEHAVIOR_SLOT + ids.shape[1]).expand_as(ids)
    if not torch.equal(token_space.slots(ids), expected):
        raise ValueError(f"`prompt`: expected BOS, a behavior, then codes in order, found {rows}")
    return ids


class ConstrainedGenerationMixin:
    """`generate` that can only produce items of the catalog, and the catalog itself. Shared by MBGen and GAMER.

    A model names in `auto_classes` the Auto classes its checkpoints answer to, and lays out histories and prompts in
    `_generation_inputs`.
    """

    auto_classes: tuple[str, ...]

    def _register_catalog(self) -> None:
        """Create the persistent buffer of item codes; called from `__init__`."""
        shape = (self.config.num_items, self.config.token_space.num_code_levels)
        self.register_buffer("item_codes", torch.full(shape, -1, dtype=torch.int32))
        self._trie = None

    def set_catalog(self, item_codes) -> None:
        """Set the items that can be generated.

        Args:
            item_codes (`torch.Tensor` or array of shape `(num_items, m)`): the codes of every item.

        Raises:
            ValueError: no items, codes outside `config.code_sizes`, or two items with the same codes.
        """
        item_codes = torch.as_tensor(item_codes).to(device=self.item_codes.device, dtype=torch.int32)
        trie = ItemTrie(item_codes, self.config.code_sizes)
        self.item_codes = item_codes.clone()
        self.config.num_items = len(item_codes)
        self._trie = (self._trie_key(), trie)

    @property
    def item_trie(self) -> ItemTrie:
        """The catalog as an automaton, derived from `item_codes` and rebuilt when that buffer changes or moves."""
        if self.item_codes.shape[0] == 0 or (self._trie is None and bool((self.item_codes < 0).all())):
            raise ValueError("`item_codes`: expected a catalog to generate from, found none; call `set_catalog` first")
        if self._trie is None or self._trie[0] != self._trie_key():
            self._trie = (self._trie_key(), ItemTrie(self.item_codes, self.config.code_sizes))
        return self._trie[1]

    def save_pretrained(self, save_directory, **kwargs):
        # `register_for_auto_class` keeps one name, and loading remote code replaces it.
        name = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        self.config.auto_map = dict.fromkeys(self.auto_classes, name)
        return super().save_pretrained(save_directory, **kwargs)

    def _trie_key(self) -> tuple:
        codes = self.item_codes
        # Tensors made under `torch.inference_mode` can not change in place and have no version.
        return codes.data_ptr(), None if codes.is_inference() else codes._version, codes.device, codes.shape

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        prompt=None,
        behavior=None,
        normalize_over: str = "vocabulary",
        logits_processor: LogitsProcessorList | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> ModelOutput | torch.LongTensor:
        r"""
        Generate interactions with items of the catalog; stock `generate` otherwise.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
                Histories as `tokenizer.encode_history` lays them out; none for a cold start.
            attention_mask (`torch.Tensor` of shape `(batch_size, seq_len)`, *optional*):
                1 for tokens, 0 for padding; where `input_ids` is not PAD by default.
            prompt (*optional*):
                Token ids, tokens or behavior names, one prompt for all rows or one per row: `[BOS, "purchase"]` asks
                for items of that behavior, `[BOS]` (the default) for a behavior and an item.
            behavior (`str` or `list[str]`, *optional*):
                Short for `prompt=[BOS, behavior]`; a list gives every row its own.
            normalize_over (`str`, *optional*, defaults to `"vocabulary"`):
                What the scores are log-probabilities over: the whole `"vocabulary"` (some of the mass falls on items
                that do not exist) or the `"catalog"` (at each step over what may follow; the scores of all items sum
                to 1 as probabilities).
            num_beams, num_return_sequences, do_sample, return_dict_in_generate, ...:
                As in stock `generate`. `length_penalty` is 0 unless given: a score is the plain sum of
                log-probabilities of the generated tokens.

        Returns:
            `torch.LongTensor` of shape `(batch_size * num_return_sequences, len)`, the decoder's ids; with
            `return_dict_in_generate` the stock output, to which `item_indices` and `behavior_indices` of shape
            `(batch_size, num_return_sequences)` are added. Where fewer items are reachable than asked for, the rest is
            -1 there, -inf in `sequences_scores` and PAD after the prompt.

        Raises:
            ValueError: no catalog, a bad prompt, or a length of its own (an item has a fixed number of codes).
        """
        if normalize_over not in ("vocabulary", "catalog"):
            raise ValueError(f"`normalize_over`: expected 'vocabulary' or 'catalog', found {normalize_over!r}")
        if "decoder_input_ids" in kwargs and (prompt is not None or behavior is not None):
            raise ValueError("`decoder_input_ids`: expected either this or `prompt`, found both")
        if "inputs" in kwargs:
            input_ids = kwargs.pop("inputs")
        trie, space = self.item_trie, self.config.token_space
        prompt_ids = resolve_prompt(kwargs.pop("decoder_input_ids", prompt), behavior, space).to(self.device)
        prompt_ids = _match_rows(prompt_ids, input_ids)
        self._check_prompted_codes(prompt_ids)
        inputs, start = self._generation_inputs(input_ids, attention_mask, prompt_ids, kwargs)
        steps = 1 + space.num_code_levels - prompt_ids.shape[1]
        processors = LogitsProcessorList([CatalogConstraint(trie, space, start, normalize_over == "catalog")])
        processors.extend(logits_processor or [])
        config, settings = _generation_settings(generation_config, kwargs, steps, self.generation_config.num_beams)
        return_dict = settings.pop("return_dict_in_generate", None)
        output_scores = settings.pop("output_scores", None)
        output = super().generate(
            **inputs,
            generation_config=config,
            logits_processor=processors,
            return_dict_in_generate=True,
            output_scores=True,  # Without it stock beam search returns no `sequences_scores` either.
            **settings,
        )
        if not output_scores:
            output.scores = None
        self._add_items(output, start, batch_size=len(prompt_ids))
        if return_dict is None:
            return_dict = (config or self.generation_config).return_dict_in_generate
        return output if return_dict else output.sequences

    def _check_prompted_codes(self, prompt_ids: torch.LongTensor) -> None:
        """Refuse codes that no item begins with: nothing could follow them."""
        if prompt_ids.shape[1] <= 1:
            return
        node = self.item_trie.walk(_codes(prompt_ids[:, 1:], self.config.token_space))
        if bool((node < 0).any()):
            row = int((node < 0).nonzero()[0])
            raise ValueError(f"`prompt`: expected the first codes of an item, found {prompt_ids[row].tolist()}")

    def _add_items(self, output: ModelOutput, start: int, batch_size: int) -> None:
        """Add `item_indices` and `behavior_indices`, and blank the rows behind which nothing was reachable."""
        space, sequences = self.config.token_space, output.sequences
        first_code = start + BEHAVIOR_SLOT
        items = self.item_trie.items(_codes(sequences[:, first_code : first_code + space.num_code_levels], space))
        scores = output.get("sequences_scores")
        if scores is not None:
            unreachable = (scores < UNREACHABLE_SCORE) | (items < 0)
            items = items.masked_fill(unreachable, -1)
            output["sequences_scores"] = scores.masked_fill(unreachable, -torch.inf)
            sequences[:, start:] = sequences[:, start:].masked_fill(unreachable[:, None], PAD)
        behaviors = torch.where(items >= 0, sequences[:, start] - space.behavior_offset, -1)
        output["item_indices"] = items.view(batch_size, -1)
        output["behavior_indices"] = behaviors.view(batch_size, -1)


def _codes(ids: torch.LongTensor, token_space: TokenSpace) -> torch.LongTensor:
    """Item codes of the token ids of the first code levels, `(num_rows, depth)`."""
    return ids - torch.tensor(token_space.code_offsets[: ids.shape[1]], dtype=ids.dtype, device=ids.device)


def _match_rows(prompt_ids: torch.LongTensor, input_ids: torch.LongTensor | None) -> torch.LongTensor:
    """One prompt per row of the histories."""
    if input_ids is None:
        return prompt_ids
    if input_ids.ndim != 2:
        raise ValueError(f"`input_ids`: expected shape (batch_size, seq_len), found {tuple(input_ids.shape)}")
    if len(prompt_ids) not in (1, len(input_ids)):
        raise ValueError(f"`prompt`: expected 1 or {len(input_ids)} prompts, found {len(prompt_ids)}")
    return prompt_ids.expand(len(input_ids), -1)


def _generation_settings(
    generation_config: GenerationConfig | None, kwargs: dict, steps: int, default_beams: int | None
) -> tuple[GenerationConfig | None, dict]:
    """Fix the length, and plain sums as scores unless the caller chose otherwise."""
    for name in ("max_new_tokens", "max_length", "min_new_tokens", "min_length"):
        given = kwargs.pop(name, None)
        if given is not None and (name != "max_new_tokens" or given != steps):
            raise ValueError(f"`{name}`: expected to be left out, an item takes {steps} tokens here, found {given}")
    if kwargs.pop("eos_token_id", None) is not None:
        raise ValueError("`eos_token_id`: expected to be left out, an item has a fixed number of codes")
    if generation_config is None:
        # Greedy search and sampling have no `length_penalty` and would warn.
        plain_sums = {"length_penalty": 0.0} if (kwargs.get("num_beams") or default_beams or 1) > 1 else {}
        # An item has a fixed number of codes: nothing is decided by an end-of-sequence token (M3).
        return None, {**plain_sums, **kwargs, "max_new_tokens": steps, "eos_token_id": None}
    generation_config = copy.deepcopy(generation_config)
    generation_config.max_length = None
    generation_config.max_new_tokens = steps
    beams = kwargs.get("num_beams") or generation_config.num_beams or default_beams or 1
    if generation_config.length_penalty is None and "length_penalty" not in kwargs and beams > 1:
        generation_config.length_penalty = 0.0
    return generation_config, kwargs


__all__ = ["BehaviorConstraint", "CatalogConstraint", "ConstrainedGenerationMixin", "resolve_prompt"]
