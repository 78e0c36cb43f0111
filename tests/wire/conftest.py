"""Settings of the property tests."""

from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("wire", deadline=None)
settings.load_profile("wire")
