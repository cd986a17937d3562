"""Tests run side by side: one thread each, since threads that wait for each other's cores cost many times the work."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
