"""Draw charts and panels, write tables and reports, and feed the loggers, from what they are given."""
