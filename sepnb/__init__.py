"""Deep generative priors for audio source separation: why they fail, and what makes them work."""
__version__ = "0.1.0"

from . import _torchaudio  # noqa: F401  (lets `import torchaudio` work beside a CPU-only torch)


def separate(mix, priors="toy", method="pursuit", **options):
    "Stems of a recording, and what speaks against them: see `sepnb.recordings.separate`."
    from .recordings import separate  # torch is imported only when it is needed

    return separate(mix, priors, method, **options)
