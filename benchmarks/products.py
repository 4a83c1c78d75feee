"""The matrix products of a training step alone: a bound of its time that only fewer of them lower.

A `Products` mode records the products of a step: of linear layers, attention and the heads, forward
and backward. `replay` computes products of the same shapes, layouts and precision, in the same
order, on other numbers. A fused attention kernel is replayed as the products inside: two forward
and five backward, which recompute the logits. Convolutions are replayed as such.

    python benchmarks/products.py --size B --image-size 224 --batch 8
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

aten = torch.ops.aten
PLAIN = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}
LIKE_PLAIN = {aten.mm: torch.mm, aten.addmm: torch.mm, aten.bmm: torch.bmm, aten.baddbmm: torch.bmm}


class Layout(NamedTuple):
    """Of a tensor: enough to make one like it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Product(NamedTuple):
    """One product of a step: the function, and the layouts of its operands."""

    function: Callable[..., Tensor]
    operands: tuple[Layout, ...]

    @property
    def flops(self) -> int:
        """Floating point operations, two for a multiplication and an addition."""
        with FlopCounterMode(display=False) as counted:
            self.function(*(tensor_like(layout, "meta") for layout in self.operands))
        return counted.get_total_flops()


class Products(TorchDispatchMode):
    """Records the products of the code that runs in it.

    Raises:
        ValueError: an operator counts FLOPs but is not a product that can be replayed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        output = function(*arguments, **(options or {}))
        operator = function.overloadpacket
        if operator in PLAIN:
            operands = (layout_of(arguments[place]) for place in PLAIN[operator])
            self.products.append(Product(LIKE_PLAIN[operator], tuple(operands)))
        elif operator is aten.convolution:
            images, weight, _, stride, padding = arguments[:5]

            def convolve(x: Tensor, w: Tensor) -> Tensor:
                return torch.conv2d(x, w, stride=stride, padding=padding)

            self.products.append(Product(convolve, (layout_of(images), layout_of(weight))))
        elif operator in flop_registry and "attention" in str(operator):
            self._attention(str(operator), arguments)
        elif operator in flop_registry:
            raise ValueError(f"{operator} cannot be replayed; add it to benchmarks/products.py")
        return output

    def _attention(self, operator: str, arguments: tuple[Any, ...]) -> None:
        """Add the products inside a fused attention kernel; values are as wide as keys."""
        backward = "backward" in operator
        q, k = arguments[1:3] if backward else arguments[:2]  # (B, h, n, D/h), (B, h, m, D/h)
        B, h, n, width = q.shape
        queries, keys = ((B * h, length, width) for length in (n, k.shape[2]))
        weights, swapped = (B * h, n, k.shape[2]), (B * h, width, k.shape[2])
        transposed = (B * h, k.shape[2], n)
        pairs = [(queries, swapped), (weights, keys)]  # q k', p v
        if backward:  # q k', do v', p' do, ds k, ds' q
            pairs = [(queries, swapped)] * 2 + [(transposed, queries), (weights, keys)]
            pairs += [(transposed, queries)]
        for pair in pairs:
            operands = tuple(Layout(shape, contiguous(shape), q.dtype, q.device) for shape in pair)
            self.products.append(Product(torch.bmm, operands))

    def flops(self) -> int:
        """Return the floating point operations of all products."""
        counts = {product: product.flops for product in set(self.products)}
        return sum(counts[product] for product in self.products)

    def replay(self) -> Callable[[], None]:
        """Return a function that computes all products; operands of one layout are one tensor."""
        layouts = {layout for product in self.products for layout in product.operands}
        tensors = {layout: tensor_like(layout, layout.device) for layout in layouts}
        calls = [
            (product.function, [tensors[layout] for layout in product.operands])
            for product in self.products
        ]

        @torch.no_grad()
        def compute() -> None:
            for function, operands in calls:
                function(*operands)

        return compute


def layout_of(tensor: Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def tensor_like(layout: Layout, device: torch.device | str) -> Tensor:
    """Return a tensor of random numbers in a layout."""
    tensor = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device=device)
    return tensor.normal_() if 0 not in layout.strides else tensor.zero_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["Ti", "S", "B", "L", "H"], default="B")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    import steps
    import trainings

    device = trainings.device_config(options.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.size, options.image_size, options.batch, device)
        with trainings.pretraining(Path(folder), *arguments) as training:
            training.advance()
            measured = steps.products_of(training, options)
    speed = measured["flops"] / measured["seconds"] / 1e9
    print(
        f"step {measured['step_s']:.3g} s, its {measured['count']} products alone "
        f"{measured['seconds']:.3g} s: {measured['step_over_products']:.2f} times; "
        f"{measured['flops'] / 1e9:,.0f} GFLOP, {speed:,.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
