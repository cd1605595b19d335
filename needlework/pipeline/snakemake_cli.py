"""The snakemake command without its limit of jobs per second.

With that limit, Snakemake 9 evaluates the whole queue again a second after every finished job, and
every second from then on: in a long run these timers occupy a core. Only its Python API has none.
"""

import sys

from snakemake.cli import args_to_api, parse_args
from snakemake.exceptions import print_exception

_OPTION = "--max-jobs-per-timespan"


def main() -> None:
    """Run snakemake with the arguments of this process."""
    try:
        parser, args = parse_args(None)
        if not any(argument.startswith(_OPTION) for argument in sys.argv):
            args.max_jobs_per_timespan = None
        succeeded = args_to_api(args, parser)
    except Exception as error:  # as the command itself does
        print_exception(error)
        sys.exit(1)
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
