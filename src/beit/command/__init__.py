"""The command line: the table of verbs, options from each verb's Config, presets, messages."""
