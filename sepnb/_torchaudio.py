"""Makes `import torchaudio` work beside a CPU-only torch.

The Linux wheels of torchaudio link against CUDA, so beside a CPU build of torch the import dies while
loading the compiled extension. What this project uses (resampling, mu-law, mel, Griffin-Lim) is plain
Python on torch. The hook below is lazy: it costs nothing until somebody imports torchaudio, leaves a
working extension alone, and otherwise records that the extension is missing, as torchaudio itself does
when it is built without one.
"""
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder

_NAME = "torchaudio._extension"


class _TolerantLoader(Loader):
    "Runs the real loader; where the compiled extension cannot be loaded, marks it as unavailable."

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        try:
            self.loader.exec_module(module)
        except (OSError, ImportError) as error:
            from torchaudio._internal.module_utils import fail_with_message

            message = f"needs torchaudio's compiled extension, which could not be loaded here: {error}"
            module._IS_TORCHAUDIO_EXT_AVAILABLE = False
            module._IS_ALIGN_AVAILABLE = False
            module.fail_if_no_align = fail_with_message(message)


class _Finder(MetaPathFinder):
    "Finds `torchaudio._extension` alone, and wraps its loader."

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _NAME:
            return None
        sys.meta_path.remove(self)  # so that the search below does not find this finder again
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _TolerantLoader(spec.loader)
        return spec


if not any(type(finder).__name__ == "_Finder" and finder.__module__ == __name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
