"""The versions of the data that a service holds: loaded apart, opened by every worker, made current by all, dropped when unused."""
