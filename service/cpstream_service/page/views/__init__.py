"""One module a page: what a template needs, from what is served."""
