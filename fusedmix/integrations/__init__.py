"""One import per trainer."""
