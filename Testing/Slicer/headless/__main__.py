"""``python -m headless``: whether the environment can start here; exit code 3 where a system library is
missing.
"""

import sys

from . import start

NEEDED = (
    "libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri libx11-6 libxkbcommon0 libfontconfig1 "
    "libdbus-1-3 libglib2.0-0"
)

try:
    complaints = start().errors
except ImportError as error:
    if "cannot open shared object file" not in str(error):
        raise
    print(f"The Slicer tests need a system library: {error}.")
    print(f"Debian, Ubuntu: apt-get install {NEEDED} fonts-dejavu-core")
    sys.exit(3)
if complaints:
    sys.exit(f"The environment did not start cleanly: {complaints}")
