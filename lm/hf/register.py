"""Makes transformers know the `hybridlm` model type, without importing transformers before the user does.

`install` runs at `import hybridlm`. If transformers' auto classes are loaded it registers the configuration now, else
when they are. The model class follows with the first configuration that is made: importing it earlier would need parts
of transformers that are still being set up.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

AUTO = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Register with transformers as soon as it is there."""
    if AUTO in sys.modules:
        _register_config(sys.modules[AUTO])
    else:
        sys.meta_path.insert(0, _AfterImport())


def register_model() -> None:
    """AutoModelForCausalLM and AutoModel know our classes from now on."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
        AutoModel,
        AutoModelForCausalLM,
    )

    from .configuration import HybridLMConfig
    from .modeling import HybridLMForCausalLM, HybridLMModel

    AutoModelForCausalLM.register(HybridLMConfig, HybridLMForCausalLM, exist_ok=True)
    AutoModel.register(HybridLMConfig, HybridLMModel, exist_ok=True)
    # Trainer and pipelines look here whether labels are to be shifted, and whether a class writes text
    MODEL_MAPPING_NAMES[HybridLMConfig.model_type] = HybridLMModel.__name__
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[HybridLMConfig.model_type] = HybridLMForCausalLM.__name__


def _register_config(auto: ModuleType) -> None:
    from .configuration import HybridLMConfig

    auto.AutoConfig.register(HybridLMConfig.model_type, HybridLMConfig, exist_ok=True)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it lets the others find `AUTO`, and registers once that has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(importlib.abc.Loader):
    """A loader that registers the configuration when the module it loads is complete."""

    def __init__(self, loader: importlib.abc.Loader):
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader  # the module is the library's; nothing of ours stays in it
        self._loader.exec_module(module)
        _register_config(module)
