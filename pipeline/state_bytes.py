"""A state as bytes, and back: :mod:`sampler.state_bytes`, by the name that the pipeline knows it by."""

from sampler.state_bytes import NewerFormatError, State, from_bytes, sought, to_bytes

__all__ = ["NewerFormatError", "State", "from_bytes", "sought", "to_bytes"]
