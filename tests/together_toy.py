"""Rank 0 fails at once, rank 1 would wait for an hour. Run by test_data_parallel.py."""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        sys.exit(3)
    time.sleep(3600)
