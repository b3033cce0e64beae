"""A simulated CUDA device, for tests of GPU code on machines without a GPU.

Its tensors keep their numbers in the CPU's memory but report a CUDA device, so that code takes
the same branches as on a GPU, with real numbers. Triton kernels run in Triton's interpreter. Errors that
only a GPU would show raise here: operands on two devices, kernel pointers to memory that is not
contiguous, and float additions whose order atomics leave open. Products add partial sums in the
dtype of their result, as cuBLAS may.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
# the device inside torch's C++: one that every build has, and on which autograd runs
INSIDE = torch.device("meta")

aten = torch.ops.aten
# index lists may stay on the CPU
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
COPIES = {aten.copy_.default, aten._to_copy.default}
# additions in no fixed order, with the positions of index and values among their arguments
ATOMIC = {
    aten.index_add.default: (2, 3),
    aten.index_add_.default: (2, 3),
    aten.scatter_add.default: (2, 3),
    aten.scatter_add_.default: (2, 3),
}


class SimulatedTensor(torch.Tensor):
    """A tensor that reports a CUDA device; `numbers` holds its values, on the CPU."""

    numbers: torch.Tensor
    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> "SimulatedTensor":
        options = {"dtype": real.dtype, "layout": real.layout, "device": INSIDE}
        if real.layout == torch.strided:
            options |= {"strides": real.stride(), "storage_offset": real.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(cls, real.shape, **options)  # type: ignore
        tensor.numbers = real
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.numbers.tolist()  # torch refuses it for any subclass

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.numbers})"


def moved(value: Any) -> Any:
    """A tensor or a module on the simulated device; a module is changed in place."""
    if isinstance(value, torch.Tensor):
        return SimulatedTensor(value.detach())
    for module in value.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(
                    SimulatedTensor(parameter.detach()), parameter.requires_grad
                )
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = SimulatedTensor(buffer)
    return value


@contextmanager
def simulated_cuda() -> Iterator[None]:
    """Inside the `with`, `device="cuda"` means the simulated device."""
    from sae_lens_matryoshka.engine import kernels, triton

    launches = {
        name: _Launch(getattr(triton, name))
        for name in ("_count", "_write", "_weighted_sums", "_dots")
    }
    with (
        mock.patch.multiple(triton, **launches),
        mock.patch.dict(kernels._triton_worked, clear=True),
        mock.patch.multiple(
            torch.cuda,
            device_of=lambda _: nullcontext(),
            get_device_capability=lambda _=None: (9, 0),
            is_current_stream_capturing=lambda: False,
        ),
        _Devices(),
        _Factories(),
    ):
        yield


class _Devices(TorchFunctionMode):
    """Makes "cuda" the device that torch's C++ takes for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def inside(value: Any) -> Any:
            is_cuda = isinstance(value, str | torch.device) and str(value).startswith("cuda")
            return INSIDE if is_cuda else value

        kwargs = tree_map(inside, kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.backward:
            with self:  # its functions are called inside, where the mode would be off
                gradient = torch.ones_like(args[0])
                return torch.autograd.Variable._execution_engine.run_backward(
                    (args[0],), (gradient,), False, False, (), True, accumulate_grad=True
                )
        if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1])  # as below
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            # torch's C++ would leave the numbers out on the device that it takes for CUDA
            on_cuda = func is torch.Tensor.new_tensor and isinstance(args[0], SimulatedTensor)
            on_cuda = kwargs.pop("device", INSIDE if on_cuda else None) == INSIDE
            tensor = func(*tree_map(_numbers, args), **kwargs)
            return SimulatedTensor(tensor) if on_cuda else tensor
        return func(*tree_map(inside, args), **kwargs)


class _Factories(TorchDispatchMode):
    """Sees every operation, also those on no tensor of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    _check_devices(func, args, tensors)
    plain_args, plain_kwargs = tree_map(_numbers, (args, kwargs))
    if func in ATOMIC:
        _check_order(func, plain_args)
    target = kwargs.get("device")
    on_cuda = any(isinstance(tensor, SimulatedTensor) for tensor in tensors)
    if target is not None:
        on_cuda = torch.device(target) == INSIDE
        plain_kwargs["device"] = torch.device("cpu")
    if func in (aten.mm.default, aten.mm.out, aten.mm.dtype, aten.mm.dtype_out) and on_cuda:
        result = _split_product(*plain_args, **plain_kwargs)
    else:
        result = func(*plain_args, **plain_kwargs)
    return tree_map(lambda leaf: _wrapped(leaf, on_cuda, tensors), result)


def _numbers(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, SimulatedTensor) else leaf


def _wrapped(leaf: Any, on_cuda: bool, arguments: list[torch.Tensor]) -> Any:
    if not isinstance(leaf, torch.Tensor) or isinstance(leaf, SimulatedTensor) or not on_cuda:
        return leaf
    for argument in arguments:  # operations in place return what they were given
        if _numbers(argument) is leaf:
            return argument
    return SimulatedTensor(leaf)


def _check_devices(func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    if func in COPIES:
        return
    if func in INDEXING and isinstance(args[0], SimulatedTensor):
        return
    # a number may come from the CPU, not to it
    on_cuda = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
    if on_cuda and any(tensor.dim() or all(t.dim() == 0 for t in on_cuda) for tensor in on_cpu):
        raise RuntimeError(f"{func}: expected all tensors on one device, found cuda:0 and cpu")


def _check_order(func: Any, args: tuple[Any, ...]) -> None:
    index, values = (args[position] for position in ATOMIC[func])
    is_whole = bool((values == values.round()).all()) and values.abs().sum() < 2**24
    if index.unique().numel() < index.numel() and not is_whole:
        raise RuntimeError(f"{func}: adds in no fixed order on CUDA, and the sums depend on it")


def _split_product(
    a: torch.Tensor,
    b: torch.Tensor,
    *dtype: torch.dtype,
    out: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """A product of two matrices in parts of its inner dimension, added in the result's dtype."""
    result_dtype = dtype[0] if dtype else kwargs.get("out_dtype", a.dtype)
    total = torch.zeros(len(a), b.shape[1], dtype=result_dtype)
    wide = torch.promote_types(result_dtype, torch.float32)
    for inner in range(0, a.shape[1], 32):
        part = a[:, inner : inner + 32].to(wide) @ b[inner : inner + 32].to(wide)
        total += part.to(result_dtype)
    return total if out is None else out.copy_(total)


class _Launch:
    """A kernel that is launched in Triton's interpreter, with pointers to the real numbers."""

    def __init__(self, kernel: Any):
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            for arg in args:
                if isinstance(arg, torch.Tensor):
                    assert isinstance(arg, SimulatedTensor), (
                        "a kernel's pointer to the CPU's memory"
                    )
                    assert arg.is_contiguous(), "a kernel's pointer to memory with gaps"
            self.kernel[grid](*map(_numbers, args), **kwargs)

        return launch
