"""PyTorch's own functions, which take what fastclip does not."""

from __future__ import annotations

from torch.nn.utils import clip_grad

__all__ = ["ORIGINALS"]

#: The functions by the names that `torch.nn.utils` has for them. They are looked up before `patch` replaces
#: them.
ORIGINALS = {
    "clip_grad_norm_": clip_grad.clip_grad_norm_,
    "clip_grad_value_": clip_grad.clip_grad_value_,
    "get_total_norm": clip_grad._get_total_norm,
    "clip_grads_with_norm_": clip_grad._clip_grads_with_norm_,
}
