"""A saved detector at work: scores of photographs, a watched folder, graphs for other runtimes."""
