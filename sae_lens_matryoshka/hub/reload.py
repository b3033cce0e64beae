"""Load staged SAEs with SAELens in a process that cannot import this package, unless they need it.

Run as a script: reload.py FOLDER. Imports SAELens, PyTorch and safetensors only.
"""

import importlib
import json
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Compare the outputs of every staged SAE with the expected ones; write answer.json."""
    spec = json.loads((folder / "spec.json").read_text())
    if spec["package"]:  # what stock SAELens cannot load needs its own package
        importlib.import_module(spec["package"])
    else:
        sys.modules["sae_lens_matryoshka"] = None  # type: ignore[assignment]
        guard = Path(__file__).parents[1] / "settings" / "unused_torchvision.py"
        runpy.run_path(str(guard))["hide_unusable_torchvision"]()
    import sae_lens
    from safetensors.torch import load_file

    if sae_lens.__version__ != spec["sae_lens"]:
        raise RuntimeError(f"found SAELens {sae_lens.__version__}, not {spec['sae_lens']}")
    tensors = load_file(folder / "expected.safetensors")
    answer: dict[str, Any] = {}
    for number, sae_id in enumerate(spec["sae_ids"]):
        try:
            x, expected = tensors[f"{number}.x"], tensors[f"{number}.out"]
            answer[sae_id] = _error(Path(spec["tree"], sae_id), x, expected)
        except Exception as error:
            traceback.print_exc()
            answer[sae_id] = f"{type(error).__name__}: {error}"
    (folder / "answer.json").write_text(json.dumps(answer))


def _error(folder: Path, x: Any, expected: Any) -> float:
    """The largest difference of an output, in units of its token's largest one."""
    import torch
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    with torch.no_grad():
        out = sae(x).flatten(1)
    scale = expected.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
    return ((out - expected).abs() / scale).max().item()


if __name__ == "__main__":
    # this script's own folder: its modules are not meant to be found by their bare names
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    main(Path(sys.argv[1]))
