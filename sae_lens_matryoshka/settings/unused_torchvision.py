"""Keep a torchvision that does not work out of the way.

SAEBench installs torchvision and uses it nowhere, but transformers and datasets look for it. transformers cannot
be imported beside a torchvision that was built for another PyTorch, such as one for CUDA beside a CPU build.
datasets below 4 cannot make tensors beside a torchvision without VideoReader, which newer versions lack.
"""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec

logger = logging.getLogger(__name__)


def hide_unusable_torchvision() -> None:
    """Let transformers and datasets work as if torchvision were not installed, where they cannot use it."""
    if find_spec("torchvision") is None:
        return
    try:
        io = import_module("torchvision.io")
    except Exception as error:  # whatever its compiled part raises
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]
        logger.warning(
            "torchvision does not work with the PyTorch that is installed (%s), so this process goes without it. "
            "Nothing here needs it: pip uninstall torchvision",
            error,
        )
        return
    if not hasattr(io, "VideoReader"):
        vars(import_module("datasets.config"))["TORCHVISION_AVAILABLE"] = False
