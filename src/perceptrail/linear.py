"""Linear layers by the fastest matrix products that PyTorch carries."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.backends import mkldnn

LARGE = 2**14  # weights: with fewer, a product costs less than the way to another kernel
VERY_LARGE = 2**19  # where oneDNN is ahead of MKL on a processor of Intel's
INTEL = "Intel" in getattr(torch.cpu, "get_capabilities", dict[str, str])().get("cpu_name", "")
_ONEDNN = (
    mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


class Linear(nn.Linear):
    """nn.Linear, large ones by oneDNN, which has AVX-512 kernels for every processor with them.

    PyTorch takes MKL, which keeps those to Intel's: on others its products take twice as long. On
    Intel's, what MKL does better is left to it: small products, and those of transposed matrices,
    which oneDNN copies first.

    Large ones can be differentiated once. To exporters each is what it inherits from.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The sum x @ weight.T + bias, [batch, fan_out], for x [batch, fan_in]."""
        exported = torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
        suits = x.dtype == torch.float32 and x.dim() == 2 and x.shape[1] == self.in_features
        if exported or not (suits and is_large(self.weight) and len(x)):
            return super().forward(x)
        y: Tensor = _Product.apply(x, self.weight, self.bias)
        return y


def is_large(weight: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `product` in this type is worth while, for a weight [..., fan_out, fan_in]."""
    fan_out, fan_in = weight.shape[-2:]
    return (
        _ONEDNN
        and fan_out * fan_in >= (VERY_LARGE if INTEL and dtype == torch.float32 else LARGE)
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """The sum a @ b.T + bias, [m, n], for a [m, k] and b [n, k], both as `is_large` wants them; its
    negative values as zeros, with `relu`.
    """
    c: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "relu" if relu else "none", [], "")
    return c


# A linear layer of inputs x [n, in] and weight [out, in], `large` as `is_large` says, and its
# derivatives, for the gradient g [n, out] by its outputs.


def outputs(x: Tensor, weight: Tensor, bias: Tensor, large: bool, relu: bool) -> Tensor:
    """The sum x @ weight.T + bias, [n, out]; its negative values as zeros, with `relu`."""
    if large:
        return product(x, weight, bias, relu)
    y = torch.addmm(bias, x, weight.t())
    return y.relu_() if relu else y


def by_weight(g: Tensor, x: Tensor, large: bool, intel: bool = INTEL) -> Tensor:
    """The gradient by the weight; `intel` is an argument for TorchScript, which reads no global."""
    return product(g.t(), x.t()) if large and not intel else torch.mm(g.t(), x)


def by_inputs(g: Tensor, weight: Tensor, large: bool) -> Tensor:
    """The gradient by the inputs."""
    return product(g, weight.t()) if large else torch.mm(g, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            by_inputs(grad, weight, True) if of_x else None,
            by_weight(grad, x, True) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
