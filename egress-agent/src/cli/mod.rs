//! The verbs of the command line. The only module that prints.
