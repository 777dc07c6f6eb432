"""Lets the tests of this folder find their twins."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
