"""The pages: a small FastAPI application over a data directory of sessions. Knows only `store`; never loads torch."""
