"""Flags of XLA that make programs faster on CPU, for the versions that know them."""

import importlib.metadata
import os

__all__ = ["KNOWN", "known_flags", "use"]

# Convolutions and sums go to the libraries that use all cores, matrix products to the one that is fast at them: on two
# cores, training takes three quarters of the time (docs/performance.md). A flag that XLA does not know ends the
# process, so each is for versions of jaxlib that it was tried with.
KNOWN = {
    "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT": ("0.10.", "0.11."),
}


_VERSION = importlib.metadata.version("jaxlib")


def known_flags(version: str = _VERSION) -> str:
    """Returns the flags that a version of jaxlib knows, as XLA_FLAGS has them."""
    return " ".join(flag for flag, versions in KNOWN.items() if version.startswith(versions))


def use(version: str = _VERSION) -> None:
    """Adds them to XLA_FLAGS, but for those that are set there; to be called before JAX computes anything."""
    given = os.environ.get("XLA_FLAGS", "")
    new = [flag for flag in known_flags(version).split() if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *new])
