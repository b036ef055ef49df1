"""`generate` constrained to the catalog, for both models, and the catalog itself."""

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers import initialization as init
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateBeamEncoderDecoderOutput
from transformers.utils import ModelOutput

from .compiled_search import CompiledSearch, read_histories
from .exact_search import exact_search
from .generation_request import BeamRequest, beam_request, check_modes, generation_settings
from .item_trie import ItemTrie
from .logits_processors import CatalogConstraint
from .pipeline_recommendation import TASK, RecommendationPipeline
from .prompts import match_rows, resolve_prompt
from .request_catalog import RequestCatalog
from .shared_history import DecodingContext
from .shared_history_search import Beams, normalized
from .token_space import BEHAVIOR_SLOT, PAD, TokenSpace


# Stock beam search starts all beams but the first at -1e9 and so fills up with copies once nothing else is reachable.
# No log-probability of an item comes near this.
UNREACHABLE_SCORE = -1e7

# Prefixes of one depth that exact search expands together, at least.
EXACT_BATCH = 64


class ConstrainedGenerationMixin:
    """`generate` that can only produce items of the catalog, and the catalog itself. Shared by MBGen and GAMER.

    A model names in `auto_classes` the Auto classes its checkpoints answer to, lays out histories and prompts in
    `_generation_inputs`, and hands out its decoder in `start_decoding`.
    """

    auto_classes: tuple[str, ...]

    supports_shared_history: bool = True
    """Whether plain beam and greedy search may go through the shared-history search instead of stock `generate`."""

    def _register_catalog(self) -> None:
        """Create the persistent buffer of item codes; called from `__init__`."""
        shape = (self.config.num_items, self.config.token_space.num_code_levels)
        self.register_buffer("item_codes", torch.full(shape, -1, dtype=torch.int32))
        eligible = None
        if self.config.restricts_items:
            eligible = torch.ones(self.config.num_items, len(self.config.behaviors), dtype=torch.bool)
        self.register_buffer("item_eligibility", eligible)
        self._trie = self._catalog = None
        self._compiled_search = CompiledSearch()

    def reset_catalog(self) -> None:
        """Fill the buffers of a catalog that was not loaded: no items, none of them restricted."""
        init.constant_(self.item_codes, -1)
        if self.item_eligibility is not None:
            init.ones_(self.item_eligibility)

    def set_catalog(self, item_codes, eligible=None) -> None:
        """Set the items that can be generated.

        Args:
            item_codes (`torch.Tensor` or array of shape `(num_items, m)`): the codes of every item.
            eligible (`torch.Tensor` or array of shape `(num_items, num_behaviors)`, *optional*): which items may be
                generated behind which behavior, as bool; all of them by default. Part of the checkpoint.

        Raises:
            ValueError: no items, codes outside `config.code_sizes`, two items with the same codes, or an eligibility
                of another shape.
        """
        item_codes = torch.as_tensor(item_codes).to(device=self.item_codes.device, dtype=torch.int32)
        trie = ItemTrie(item_codes, self.config.code_sizes)
        if eligible is not None:
            eligible, shape = torch.as_tensor(eligible), (len(item_codes), len(self.config.behaviors))
            if eligible.shape != shape or eligible.dtype != torch.bool:
                raise ValueError(
                    f"`eligible`: expected bool of shape {shape}, found {eligible.dtype} of {tuple(eligible.shape)}"
                )
            eligible = eligible.to(item_codes.device).clone()
        self.item_codes, self.item_eligibility = item_codes.clone(), eligible
        self.config.num_items, self.config.restricts_items = len(item_codes), eligible is not None
        self._trie, self._catalog = (self._trie_key(), trie), None

    @property
    def item_trie(self) -> ItemTrie:
        """The catalog as an automaton, derived from `item_codes` and rebuilt when that buffer changes or moves."""
        if self.item_codes.shape[0] == 0 or (self._trie is None and bool((self.item_codes < 0).all())):
            raise ValueError("`item_codes`: expected a catalog to generate from, found none; call `set_catalog` first")
        if self._trie is None or self._trie[0] != self._trie_key():
            self._trie = (self._trie_key(), ItemTrie(self.item_codes, self.config.code_sizes))
        return self._trie[1]

    @property
    def request_catalog(self) -> RequestCatalog:
        """What may follow what for a request without sets, kept as long as the trie and the eligibility stay."""
        trie, eligible = self.item_trie, self.item_eligibility
        key = self._trie_key(), None if eligible is None else _version(eligible)
        if self._catalog is None or self._catalog[0] != key:
            self._catalog = (key, RequestCatalog(trie, self.config.token_space, self.item_codes, eligible))
        return self._catalog[1]

    def save_pretrained(self, save_directory, **kwargs):
        # `register_for_auto_class` keeps one name, and loading remote code replaces it.
        name = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        self.config.auto_map = dict.fromkeys(self.auto_classes, name)
        # Its file travels with the others because this one imports it.
        pipeline = f"{RecommendationPipeline.__module__.rsplit('.', 1)[-1]}.{RecommendationPipeline.__name__}"
        self.config.custom_pipelines = {TASK: {"impl": pipeline, "pt": list(self.auto_classes[1:])}}
        return super().save_pretrained(save_directory, **kwargs)

    def _trie_key(self) -> tuple:
        return _version(self.item_codes)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        prompt=None,
        behavior=None,
        candidates=None,
        exclude=None,
        normalize_over: str = "vocabulary",
        exact: bool = False,
        node_budget: int | None = None,
        behavior_sampling: bool = False,
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
            candidates (*optional*):
                Catalog indices of the items that may be generated, one list for all rows or one per row; all of the
                catalog by default. `tokenizer.item_sets` maps raw item ids.
            exclude (*optional*):
                Catalog indices of items that may not be generated, in the same form; -1 stands for no item in both.
            normalize_over (`str`, *optional*, defaults to `"vocabulary"`):
                What the scores are log-probabilities over: the whole `"vocabulary"` (some of the mass falls on items
                that do not exist or are ruled out) or the `"catalog"` (at each step over what may follow; the scores
                of all items that may be generated sum to 1 as probabilities).
            exact (`bool`, *optional*, defaults to `False`):
                Whether to return the true best items, found by best-first search and proven, instead of those that
                `num_beams` beams find.
            node_budget (`int`, *optional*):
                Prefixes that exact search may expand per user; as many as it takes by default. When it runs out, the
                best items found come back, and `exact_gap` says what may have been missed.
            behavior_sampling (`bool`, *optional*, defaults to `False`):
                Whether every behavior gets results in proportion to its probability (MBGen section 4.4.2); for
                requests that leave the behavior open.
            num_beams, num_return_sequences, do_sample, return_dict_in_generate, compile_config, ...:
                As in stock `generate`. `compile_config` compiles the search as a whole, anew for each shape of a
                request; its mode "reduce-overhead" replays one CUDA graph on GPUs. `length_penalty` is 0 unless given:
                a score is the plain sum of log-probabilities of the generated tokens.

        Returns:
            `torch.LongTensor` of shape `(batch_size * num_return_sequences, len)`, the decoder's ids; with
            `return_dict_in_generate` the stock output, to which `item_indices` and `behavior_indices` of shape
            `(batch_size, num_return_sequences)` are added. Where fewer items are reachable than asked for, the rest is
            -1 there, -inf in `sequences_scores` and PAD after the prompt. Where the search predicts the behavior,
            `behavior_probabilities` of shape `(batch_size, num_behaviors)` is added. With `exact`, `exact_bound` (no
            item that was not looked at scores more), `exact_gap` (by how much such an item may beat the last one
            returned; 0 is the proof that none does) and `expanded_prefixes`, each of shape `(batch_size,)`.

        Raises:
            ValueError: no catalog, a bad prompt, sets that do not fit, a length of its own (an item has a fixed number
                of codes), or `exact` or `behavior_sampling` with what only stock `generate` can do.
        """
        if normalize_over not in ("vocabulary", "catalog"):
            raise ValueError(f"`normalize_over`: expected 'vocabulary' or 'catalog', found {normalize_over!r}")
        if "decoder_input_ids" in kwargs and (prompt is not None or behavior is not None):
            raise ValueError("`decoder_input_ids`: expected either this or `prompt`, found both")
        if "inputs" in kwargs:
            input_ids = kwargs.pop("inputs")
        space = self.config.token_space
        prompt_ids = resolve_prompt(kwargs.pop("decoder_input_ids", prompt), behavior, space).to(self.device)
        prompt_ids = match_rows(prompt_ids, input_ids)
        self._check_prompted_codes(prompt_ids)
        inputs, start = self._generation_inputs(input_ids, attention_mask, prompt_ids, kwargs)
        over_catalog = normalize_over == "catalog"
        catalog = self.request_catalog.with_sets(candidates, exclude, len(prompt_ids))
        steps = 1 + space.num_code_levels - prompt_ids.shape[1]
        config, settings = generation_settings(generation_config, kwargs, steps, self.generation_config.num_beams)
        modes = {"exact": exact, "node_budget": node_budget, "behavior_sampling": behavior_sampling}
        request = None
        if not logits_processor and not self.training and self.supports_shared_history:
            request = beam_request(config, self.generation_config, settings, **modes)
        check_modes(request, prompt_ids.shape[1], **modes)
        return_dict = settings.pop("return_dict_in_generate", None)
        if request is not None:
            output = self._search(request, inputs, prompt_ids, catalog, over_catalog)
        else:
            constraint = CatalogConstraint(catalog, space, start, over_catalog)
            processors = LogitsProcessorList([constraint, *(logits_processor or [])])
            output = self._stock_generate(inputs, config, processors, settings)
        self._add_items(output, start, batch_size=len(prompt_ids))
        if return_dict is None:
            return_dict = (config or self.generation_config).return_dict_in_generate
        return output if return_dict else output.sequences

    def _stock_generate(self, inputs: dict, config, processors: LogitsProcessorList, settings: dict) -> ModelOutput:
        """The answer of stock `generate`, always with scores, since without them it returns no `sequences_scores`."""
        output_scores = settings.pop("output_scores", None)
        output = super().generate(
            generation_config=config,
            logits_processor=processors,
            return_dict_in_generate=True,
            output_scores=True,
            **{**settings, **inputs},
        )
        if not output_scores:
            output.scores = None
        return output

    def _search(
        self,
        request: BeamRequest,
        inputs: dict[str, torch.Tensor],
        prompt_ids: torch.LongTensor,
        catalog: RequestCatalog,
        over_catalog: bool,
    ) -> ModelOutput:
        """The answer of the shared-history search, in the form of stock `generate`."""
        results, proof = request.num_return_sequences, None
        if request.exact:
            expansion = read_histories(self, inputs, prompt_ids, catalog, over_catalog)
            batch = max(request.num_beams, EXACT_BATCH)
            proof = exact_search(expansion, prompt_ids, results, batch, request.node_budget)
            beams = proof.beams
        else:
            run = self._compiled_search.get(request.compile_config)
            by_behavior = results if request.behavior_sampling else None
            # What comes back is made into new tensors below: a CUDA graph writes over its own at the next call.
            beams = run(self, inputs, prompt_ids, catalog, over_catalog, request.num_beams, by_behavior)
        output = self._stock_output(request, inputs, prompt_ids, beams)
        if beams.behavior_log_probs is not None:
            output["behavior_probabilities"] = normalized(beams.behavior_log_probs).exp()
        if proof is not None:
            output["exact_bound"], output["exact_gap"] = proof.bound, proof.gap
            output["expanded_prefixes"] = proof.expanded
        return output

    def _stock_output(
        self, request: BeamRequest, inputs: dict[str, torch.Tensor], prompt_ids: torch.LongTensor, beams: Beams
    ) -> ModelOutput:
        """The first results of every user, as stock `generate` lays them out."""
        results, levels = request.num_return_sequences, self.config.token_space.num_code_levels
        missing = max(0, results - beams.scores.shape[1])
        ids = torch.nn.functional.pad(beams.ids, (0, 0, 0, missing), value=PAD)[:, :results]
        scores = torch.nn.functional.pad(beams.scores, (0, missing), value=-torch.inf)[:, :results]
        scores = scores / float(1 + levels - prompt_ids.shape[1]) ** request.length_penalty
        given = inputs.get("decoder_input_ids", inputs["input_ids"])
        given = given[:, : given.shape[1] - prompt_ids.shape[1], None].transpose(1, 2).expand(-1, results, -1)
        sequences = torch.cat([given, ids], dim=-1).flatten(0, 1)
        output = GenerateBeamEncoderDecoderOutput if self.config.is_encoder_decoder else GenerateBeamDecoderOnlyOutput
        return output(sequences=sequences, sequences_scores=scores.flatten())

    def next_log_probs(
        self, hidden_states: torch.Tensor, slot: int, context: DecodingContext, over_vocabulary: bool = True
    ) -> torch.Tensor:
        """Log-probabilities of the ids of one slot that may come next; what every step of the search goes through.

        A model whose head is more than a softmax of `lm_logits` overrides this method, and gives the same function as
        its `forward`.

        Args:
            hidden_states: `(num_users, num_beams, d_model)` last hidden states of the last tokens.
            slot: slot of the next token: behaviors or a code level.
            context: ids and last hidden states of the histories, once per user, and of the interaction so far.
            over_vocabulary: whether values are log-probabilities over what the loss normalises over; otherwise they
                may be off by a number per beam, since they are normalised over what may follow.

        Returns:
            `(num_users, num_beams, width)`, `float32`: the behaviors, or the ids of the code level.
        """
        first, width = self.config.token_space.slot_range(slot)
        if over_vocabulary and self.config.loss_over == "slot":
            return self.lm_logits(hidden_states, slice(first, first + width)).float().log_softmax(-1)
        if over_vocabulary:
            logits = self.lm_logits(hidden_states).float()
            return logits[..., first : first + width] - logits.logsumexp(-1, keepdim=True)
        return self.lm_logits(hidden_states, slice(first, first + width)).float()

    def lm_logits(self, hidden_states: torch.Tensor, ids: slice = slice(None)) -> torch.Tensor:
        """Logits of a range of ids, from last hidden states."""
        if type(self.lm_head) is not torch.nn.Linear or ids == slice(None):
            # A wrapped head, such as one with an adapter, is more than its weight.
            return self.lm_head(hidden_states)[..., ids]
        return torch.nn.functional.linear(hidden_states, self.lm_head.weight[ids])

    def _check_prompted_codes(self, prompt_ids: torch.LongTensor) -> None:
        """Refuse codes that no item begins with: nothing could follow them."""
        if prompt_ids.shape[1] <= 1:
            return
        node = self.item_trie.walk(item_codes_of(prompt_ids[:, 1:], self.config.token_space))
        if bool((node < 0).any()):
            row = int((node < 0).nonzero()[0])
            raise ValueError(f"`prompt`: expected the first codes of an item, found {prompt_ids[row].tolist()}")

    def _add_items(self, output: ModelOutput, start: int, batch_size: int) -> None:
        """Add `item_indices` and `behavior_indices`, and blank the rows behind which nothing was reachable."""
        space, sequences = self.config.token_space, output.sequences
        first_code = start + BEHAVIOR_SLOT
        items = self.item_trie.items(
            item_codes_of(sequences[:, first_code : first_code + space.num_code_levels], space)
        )
        scores = output.get("sequences_scores")
        unreachable = items < 0
        if scores is not None:
            unreachable = unreachable | (scores < UNREACHABLE_SCORE)
            output["sequences_scores"] = scores.masked_fill(unreachable, -torch.inf)
        items = items.masked_fill(unreachable, -1)
        sequences[:, start:] = sequences[:, start:].masked_fill(unreachable[:, None], PAD)
        behaviors = torch.where(items >= 0, sequences[:, start] - space.behavior_offset, -1)
        output["item_indices"] = items.view(batch_size, -1)
        output["behavior_indices"] = behaviors.view(batch_size, -1)


def _version(tensor: torch.Tensor) -> tuple:
    """Changes when a tensor is replaced, moved or written to."""
    # Tensors made under `torch.inference_mode` can not change in place and have no version.
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version, tensor.device, tensor.shape


def item_codes_of(ids: torch.LongTensor, token_space: TokenSpace) -> torch.LongTensor:
    """Item codes of the token ids of the first code levels, `(num_rows, depth)`."""
    return ids - torch.tensor(token_space.code_offsets[: ids.shape[1]], dtype=ids.dtype, device=ids.device)


__all__ = ["ConstrainedGenerationMixin"]
