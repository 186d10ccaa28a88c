"""Progress of long host loops."""
import contextlib

class _No:
    def advance(self, count=1, *, loss=None): pass

@contextlib.contextmanager
def progress(total, description, *, start=0):
    yield _No()
