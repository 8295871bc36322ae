"""The command line, one file a command.

Each command is a frozen dataclass: its fields and their docstrings are the flags and their help, and `run` does what it
says. The files import at their top what the flags need, and in `run` what the command needs: JAX and what stands on it
take seconds to import, which `--help` does not wait for.
"""
