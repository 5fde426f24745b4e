"""The command line: a command a file, each one library call. Data to stdout, everything else to stderr."""
