"""An object that forwards to a SAELens SAE everything that it does not do itself."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from typing_extensions import Self, override


class SAEProxy:
    """
    Forwards attributes and methods to the SAE that it wraps, for reading and for setting.

    Methods that return the SAE itself, as `eval()` does, return this object instead. SAELens accepts
    it wherever it accepts an SAE (`HookedSAETransformer.add_sae`, `run_with_saes`, ...).

    Args:
        sae: The SAE, which is not copied: moving or folding this object moves or folds the SAE.
    """

    sae: SAE[Any]

    def __init__(self, sae: SAE[Any], **own: Any):
        self.__dict__.update(sae=sae, **own)

    def __getattr__(self, name: str) -> Any:
        if "sae" not in self.__dict__:  # while it is copied or unpickled
            raise AttributeError(name)
        try:
            value = getattr(self.sae, name)
        except AttributeError as error:
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}, and neither has its "
                f"{type(self.sae).__name__}. The SAELens SAE is .sae, a nested level is .level(i), "
                "settings are in .cfg and .cfg.metadata."
            ) from error
        return self._instead_of_sae(value) if inspect.ismethod(value) else value

    def _instead_of_sae(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def forwarded(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self if result is self.sae else result

        return forwarded

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise AttributeError(
                f"{name} cannot be changed. Make another one: {type(self).__name__}(sae, widths)."
            )
        setattr(self.sae, name, value)

    @override
    def __delattr__(self, name: str) -> None:
        delattr(self.sae, name)

    @override
    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.sae)})

    # ---- what every SAE does

    @property
    def d_in(self) -> int:
        """Dimension of the activations."""
        return self.sae.cfg.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.cfg.d_sae

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct activations of the model, (..., d_in), from all latents."""
        return self.sae(x)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Encode activations of the model, (..., d_in), to latent activations, (..., d_sae)."""
        return self.sae.encode(x)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstruct from latent activations, (..., d_sae), to (..., d_in)."""
        return self.sae.decode(feature_acts)

    # ---- move: SAELens keeps `cfg` up to date in `to` alone

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the SAE to a device or data type, as `torch.nn.Module.to`."""
        sae, cfg = self.sae, self.sae.cfg
        before = cfg.device, cfg.dtype, sae.device, sae.dtype
        try:
            sae.to(*args, **kwargs)
        except BaseException:  # SAELens writes down where to before it gets there
            cfg.device, cfg.dtype, sae.device, sae.dtype = before
            raise
        return self

    def cpu(self) -> Self:
        """Move the SAE to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device | None = None) -> Self:
        """Move the SAE to a GPU."""
        return self.to(torch.device("cuda" if device is None else device))

    def float(self) -> Self:
        """Cast the SAE to float32."""
        return self.to(dtype=torch.float32)

    def double(self) -> Self:
        """Cast the SAE to float64."""
        return self.to(dtype=torch.float64)

    def half(self) -> Self:
        """Cast the SAE to float16."""
        return self.to(dtype=torch.float16)

    def bfloat16(self) -> Self:
        """Cast the SAE to bfloat16."""
        return self.to(dtype=torch.bfloat16)


SAE.register(SAEProxy)  # isinstance(..., SAE), which SAELens asks before it attaches or uploads one
