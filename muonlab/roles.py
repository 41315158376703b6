"""What a parameter *is*. The one vocabulary that models, routing, rules and reports share."""

from enum import StrEnum

__all__ = ["Role"]


class Role(StrEnum):
    """The part a parameter plays in its network; decides which rule updates it.

    >>> Role("hidden") is Role.HIDDEN
    True
    """

    EMBEDDING = "embedding"  # token or position table (num_tokens, width)
    HIDDEN = "hidden"  # weight matrix between two hidden layers (fan_out, fan_in)
    HEAD = "head"  # matrix that maps the last hidden state to logits (num_tokens, width)
    VECTOR = "vector"  # gain, bias, scalar: anything with at most one dimension above one
    CONV = "conv"  # convolution kernel (fan_out, fan_in, *kernel)
    EXPERT = "expert"  # stack of matrices (num_experts, fan_out, fan_in): a batch, never flattened
