"""What goes into other systems: certifiers as StableHLO programs.

Regions and certificates also pass through `jax.export` of a function of your own (`cure_jax.pytrees`).
"""

from cure_jax.interop.export import PLATFORMS, export_certifier
from cure_jax.interop.standalone import Certifier, load_certifier

__all__ = ["PLATFORMS", "Certifier", "export_certifier", "load_certifier"]
