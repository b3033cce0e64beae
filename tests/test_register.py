"""Registration with SAELens."""

import subprocess
import sys

import pytest
from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    get_sae_class,
    get_sae_training_class,
)

import sae_lens_matryoshka as slm
from sae_lens_matryoshka.saes.refined_sae import RefinedSAE, RefinedSAEConfig


def test_importing_registers():
    classes = (slm.MatryoshkaTrainingSAE, slm.MatryoshkaTrainingSAEConfig)
    assert get_sae_training_class("matryoshka") == classes
    assert get_sae_class("matryoshka_refined") == (RefinedSAE, RefinedSAEConfig)


def test_again_changes_nothing():
    slm.register()
    slm.register()
    assert get_sae_training_class("matryoshka")[0] is slm.MatryoshkaTrainingSAE


@pytest.mark.parametrize(
    ("registry", "name"),
    [(SAE_TRAINING_CLASS_REGISTRY, "matryoshka"), (SAE_CLASS_REGISTRY, "matryoshka_refined")],
)
def test_a_foreign_class_of_our_name(monkeypatch, registry, name):
    class Foreign:
        __module__ = "someone.elses"

    monkeypatch.setitem(registry, name, (Foreign, object))
    with pytest.raises(ValueError, match=rf"{name}' already belongs to someone\.elses.*Foreign"):
        slm.register()
    assert registry[name][0] is Foreign


def test_every_public_name_exists():
    for name in slm.__all__:
        assert getattr(slm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = slm.nothing


def test_the_command_line_registers_late():
    code = (
        "import sys; sys.argv = ['/bin/sae-lens-matryoshka']; import sae_lens_matryoshka as slm\n"
    )
    code += "assert 'sae_lens' not in sys.modules and 'torch' not in sys.modules\n"
    code += "slm.register(); from sae_lens.registry import get_sae_training_class as get\n"
    code += "assert get('matryoshka')[0] is slm.MatryoshkaTrainingSAE"
    subprocess.run([sys.executable, "-c", code], check=True)
