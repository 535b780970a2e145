"""`python -m xlmr_ray`: the command line, where the script is not on the path."""

from xlmr_ray.cli import main

main()
