"""`python -m flare_ds` and `deepspeed --module flare_ds`: the command line."""

import sys

from flare_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
