"""`python -m multiscene_rec`: the command; `torchrun --nproc-per-node 2 -m multiscene_rec train ...` in
several processes."""
import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
