"""The command line: one module for each command. The entry point is :func:`zerosum_ext.cli.main.main`."""
