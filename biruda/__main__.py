"""The entry point. What must start in the interpreter's own time is handled before the command line is imported."""

import sys


def main() -> int:
    """Run biruda with the arguments of this process; the status to exit with."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "--guess-env":
        from biruda.cli.guess import guess_env

        return guess_env(arguments[1:])
    if arguments and arguments[0] == "--worker":  # internal: how an injected worker starts
        from biruda.worker.entry import main as be_worker

        return be_worker(arguments[1:])
    if arguments and arguments[0] == "--init":  # internal: how a worker starts as the first process of a machine
        from biruda.worker.machine import main as be_machine

        return be_machine(arguments[1:])
    if arguments and arguments[0] == "--zygote":  # internal: how a frozen executable starts its zygote
        from biruda.coordinator.spawners.zygote import main as be_zygote

        be_zygote(int(arguments[1]))
        return 0
    if arguments and arguments[0] == "--search-log":  # internal: how the master searches a log
        from biruda.master.joblog.searching import main as search_log

        return search_log(arguments[1:])
    from biruda.cli.main import main as run_command

    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
