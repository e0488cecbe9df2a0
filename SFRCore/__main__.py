"""``python -m SFRCore`` is the command ``sfr``."""

from __future__ import annotations

from SFRCore.cli import main

if __name__ == "__main__":
    main()
