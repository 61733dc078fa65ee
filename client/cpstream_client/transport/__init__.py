"""One request and its reply: where to ask, how to connect, when to try again."""
