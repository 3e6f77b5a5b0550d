"""Property tests here have no deadline: on a busy machine the first call of a lazy import takes longer than any."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
