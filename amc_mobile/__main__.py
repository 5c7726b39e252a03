"""`python -m amc_mobile`: the command `amc-mobile`, where no script was put on the path."""

from __future__ import annotations

from amc_mobile.cli import main

if __name__ == "__main__":
    main()
