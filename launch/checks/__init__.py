"""Long checks of the library itself: certificates under attack, trainings under mishaps."""
