"""What launchers start, in a checkout or where the package is installed: `deepspeed --module dtem.train ...`,
`torchrun -m dtem.train ...`."""

import sys

from launch.train import script

if __name__ == "__main__":
    sys.exit(script())
