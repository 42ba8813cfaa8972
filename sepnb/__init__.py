"""Deep generative priors for audio source separation: why they fail, and what makes them work."""
__version__ = "0.1.0"

from . import _torchaudio  # noqa: F401  (lets `import torchaudio` work beside a CPU-only torch)
