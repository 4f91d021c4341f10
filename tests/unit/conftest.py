"""Nothing is real here but the code: no server, no clock. Hypothesis may take its time on a busy machine."""

from hypothesis import settings

settings.register_profile("kassa", deadline=None)
settings.load_profile("kassa")
