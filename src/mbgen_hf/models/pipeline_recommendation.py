"""The `transformers` pipeline `"multi-behavior-recommendation"`: histories in, ranked items out.

A checkpoint carries it, so that `pipeline("multi-behavior-recommendation", model=..., trust_remote_code=True)` works
where this package is not installed.
"""

from collections.abc import Sequence
from typing import Any

from transformers import Pipeline

from .tokenization_interactions import as_histories


TASK = "multi-behavior-recommendation"
ANY_BEHAVIOR = "any"


class RecommendationPipeline(Pipeline):
    """Recommends items for histories of raw item ids.

    Calling it takes one history or a list of them, each a list of `(behavior, item_id)` pairs, oldest first, or a dict
    as `tokenizer.encode_history` takes it; an empty list is a user without history. Options, of the call or of the
    pipeline:

    Args:
        behavior (`str`): the behavior to recommend for, the target behavior by default; `"any"` predicts it too.
        top_k (`int`): length of the lists, 10 by default; fewer come back where fewer items are reachable.
        num_beams (`int`): width of the beam search, 20 by default, at least `top_k`.
        generate_kwargs (`dict`): further arguments of `generate`.
        batch_size (`int`): histories at once, 1 by default.

    Returns:
        For one history a list of `{"behavior", "item_id", "score"}`, best first; one such list each for several.
        Scores are log-probabilities.

    Raises:
        ValueError: an unknown behavior or item, or `top_k` below 1.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_feature_extractor = False

    def __call__(self, histories: Sequence, **kwargs: Any):
        batch, single = as_histories(histories)
        answers = super().__call__([{"history": history} for history in batch], **kwargs)
        return answers[0] if single else answers

    def _sanitize_parameters(self, behavior=None, top_k=None, num_beams=None, generate_kwargs=None, **unknown):
        if unknown:
            raise ValueError(f"`{next(iter(unknown))}`: expected an option of this pipeline, found an unknown one")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"`top_k`: expected a whole number of at least 1, found {top_k}")
        own = {"behavior", "num_beams", "num_return_sequences", "return_dict_in_generate", "do_sample"}
        if taken := sorted(own & set(generate_kwargs or {})):
            raise ValueError(
                f"`generate_kwargs`: expected none of the pipeline's own arguments {sorted(own)}, found {taken}"
            )
        given = {"behavior": behavior, "top_k": top_k, "num_beams": num_beams, "generate_kwargs": generate_kwargs}
        return {}, {name: value for name, value in given.items() if value is not None}, {}

    def preprocess(self, inputs: dict[str, Any]):
        session_wise = getattr(self.model.config, "session_wise_attention", False)
        return self.tokenizer.encode_history([inputs["history"]], with_sessions=session_wise)

    def _forward(self, inputs, behavior=None, top_k: int = 10, num_beams: int = 20, generate_kwargs=None):
        behavior = self.tokenizer.target_behavior if behavior is None else behavior
        output = self.model.generate(
            **inputs,
            behavior=None if behavior == ANY_BEHAVIOR else behavior,
            num_beams=max(num_beams, top_k, 2),  # Greedy search reports no scores.
            num_return_sequences=top_k,
            return_dict_in_generate=True,
            **(generate_kwargs or {}),
        )
        shape = (-1, top_k)
        sequences = output.sequences.view(*shape, output.sequences.shape[-1])
        return {"sequences": sequences, "scores": output.sequences_scores.view(shape)}

    def postprocess(self, outputs) -> list[dict[str, Any]]:
        pairs = self.tokenizer.decode_interactions(outputs["sequences"][0])
        scores = outputs["scores"][0].tolist()
        found = ((*pair, score) for pair, score in zip(pairs, scores, strict=True) if pair is not None)
        return [{"behavior": behavior, "item_id": item, "score": score} for behavior, item, score in found]


__all__ = ["TASK", "RecommendationPipeline"]
