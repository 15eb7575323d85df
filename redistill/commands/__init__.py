"""Commands: the library on the command line; each is a thin layer over one function."""
