"""What a policy can read at once."""

from transformers import PreTrainedModel


def check_length(model: PreTrainedModel, tokens: int, what: str) -> None:
    """Raises ValueError where a text has more tokens than the policy has positions."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise ValueError(f"{what} has {tokens} tokens, and the policy reads at most {most}: shorten or leave it out")
