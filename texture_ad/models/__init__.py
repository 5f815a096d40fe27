"""Networks and mathematics, of torch alone."""
