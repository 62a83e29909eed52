"""Python fills the structs that C++ reads: the same names in the same order, or memory is read as what it is not."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from hybridlm import kernels
from hybridlm.kernels.native.library import NativeCall, NativeKernel

ROOT = Path(kernels.__file__).parent
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/native.py"))
HEADERS = "".join((ROOT / "native" / name).read_text() for name in ("chunk.h", "call.h", "band.h", "attention_step.h"))


def python_fields(folder: str) -> dict[str, list[str]]:
    """Of the struct that each function of a folder's native.py is called with."""
    values = vars(importlib.import_module(f"{kernels.__name__}.{folder}.native")).values()
    found = [x for value in values for x in (value.values() if isinstance(value, dict) else [value])]
    return {x.function: [name for name, _ in x.struct._fields_] for x in found if isinstance(x, NativeKernel)}


def cpp_fields(source: str) -> dict[str, list[str]]:
    """Of the struct that each function of C++ source takes; those of structs in it in their place."""
    text = re.sub(r"//.*", "", HEADERS + source)
    structs = {
        name: body.split("\n\n")[0] for name, body in re.findall(r"struct (\w+) \{\n(.*?)\n\};", text, re.DOTALL)
    }

    def fields(struct: str) -> list[str]:
        names = []
        for declaration in filter(str.strip, structs[struct].split(";")):
            kind, variables = re.fullmatch(r"\s*(?:const )?(\w+)(?:<T, In>)?([\s*]+\w.*)", declaration).groups()
            names += fields(kind) if kind in structs else re.findall(r"\w+", variables)
        return names

    functions = re.findall(r'extern "C" void (\w+)\(const Call\* call\) \{\s*typed<(\w+)>', text)
    return {function: fields(struct) for function, struct in functions}


@pytest.mark.parametrize("folder", FOLDERS)
def test_structs_of_python_and_cpp_agree(folder):
    sources = [path.read_text() for path in (ROOT / folder).glob("*.cpp")]
    found = {function: names for source in sources for function, names in cpp_fields(source).items()}
    assert found == python_fields(folder)
    assert len(found) == "".join(sources).count('extern "C"')


def test_a_field_in_another_place_is_noticed():
    source = (ROOT / "gated_delta" / "native.cpp").read_text()
    swapped = source.replace("const In *q, *k, *v;", "const In *k, *q, *v;")
    right, wrong = cpp_fields(source), cpp_fields(swapped)
    assert wrong != right and swapped != source
    assert right["hybridlm_gated_delta_forward"][9:14] == ["q", "k", "v", "decay", "beta"]


def test_a_tensor_that_is_missing_or_unknown_is_refused():
    kernel = NativeKernel("hybridlm_nothing", "x", "y")
    with pytest.raises(TypeError, match="hybridlm_nothing takes x, y; given: x, z"):
        kernel(NativeCall(torch.float32, [0], heads=1, K=1, V=1), x=None, z=None)
